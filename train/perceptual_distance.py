"""ST-LPIPS: a learned perceptual distance that shifts by a pixel hardly change.

Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", ECCV 2022: features of an AlexNet
whose strides were replaced by blurred ones, normalised over channels, their squared differences
weighted and averaged. The network is written here; the weights are those of the package
stlpips-pytorch (BSD 2-clause), whose code is not imported: it would need torchvision and IPython.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = "stlpips_pytorch"
_FILE = Path("weights") / "vST0.0" / "alex_shift_tolerant.pth"
# Name in the file, channels in and out, side of the kernel. The file numbers layers through.
_LAYERS = (
    ("net.slice1.0", 3, 64, 11),
    ("net.slice2.5", 64, 192, 5),
    ("net.slice3.9", 192, 384, 3),
    ("net.slice4.11", 384, 256, 3),
    ("net.slice5.13", 256, 256, 3),
)
_EPSILON = 1e-10
_STRIP_VALUES = 2**23  # of the first layer before its blur, at a time

LEAST_SIDE = 21
"""Pixels a side below which the blur of the third layer has nothing to reflect."""


class MissingWeightsError(ImportError):
    """The weights of the distance are not installed, or not those expected; one line."""


def find_weights() -> Path:
    """Return the file of the weights in the installed package, without importing it.

    Raises:
        MissingWeightsError: the package is not installed, or has no such file.
    """
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):
        spec = None
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / _FILE).is_file():
            return folder / _FILE
    reason = "is not installed" if spec is None else f"has no {_FILE.as_posix()}"
    raise MissingWeightsError(
        f"the perceptual distance needs the weights of stlpips-pytorch, which {reason}: "
        "pip install 'dasr-ops[train]'"
    )


class PerceptualDistance(nn.Module):
    """ST-LPIPS with the AlexNet trunk; 0 for equal pictures, more is worse.

    Args:
        weights: alex_shift_tolerant.pth of stlpips-pytorch; default: of the installed package.

    Raises:
        MissingWeightsError: there is no such file, or its contents are others.
    """

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        path = find_weights() if weights is None else Path(weights)
        state = _read(path)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, side, padding={11: 0, 5: 2, 3: 1}[side])
            for _, inputs, outputs, side in _LAYERS
        )
        self.importance = nn.ParameterList(torch.empty(c) for _, _, c, _ in _LAYERS)
        self.register_buffer("shift", _take(path, state, "scaling_layer.shift", (1, 3, 1, 1)))
        self.register_buffer("scale", _take(path, state, "scaling_layer.scale", (1, 3, 1, 1)))
        with torch.no_grad():
            for index, (name, _, channels, _) in enumerate(_LAYERS):
                layer = self.convolutions[index]
                layer.weight.copy_(_take(path, state, f"{name}.weight", layer.weight.shape))
                layer.bias.copy_(_take(path, state, f"{name}.bias", layer.bias.shape))
                key = f"lin{index}.model.1.weight"
                self.importance[index].copy_(_take(path, state, key, (1, channels, 1, 1)).view(-1))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair, float32 [B].

        Memory: about 500 bytes for each pixel of a picture in float32.

        Args:
            pred: float [B, 3, H, W] in 0..1, H and W at least 21.
            target: the same shape.

        Raises:
            TypeError, ValueError: not as described.
        """
        for name, value in (("pred", pred), ("target", target)):
            _check(name, value)
        if pred.shape != target.shape:
            raise ValueError(
                f"pred: expected {list(target.shape)} as target, got {list(pred.shape)}"
            )
        return self.between(self.features(pred), self.features(target))

    def features(self, picture: Tensor) -> list[Tensor]:
        """Return what is compared, for a picture that is compared more than once.

        Memory: about 170 bytes for each pixel of a picture in float32.

        Args:
            picture: float [B, 3, H, W] in 0..1, H and W at least 21.

        Returns:
            The features of each layer, of length 1 over the channels.

        Raises:
            TypeError, ValueError: not as described.
        """
        _check("picture", picture)
        # Pooling and convolutions of few channels are faster in this layout on the CPU.
        features = self._scaled(picture).contiguous(memory_format=torch.channels_last)
        found = []
        for index in range(len(_LAYERS)):
            features = self._layer(index, features)
            found.append(features / (features.norm(dim=1, keepdim=True) + _EPSILON))
        return found

    def between(self, pred: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """Return the distance of each pair, float32 [B], from the `features` of both."""
        distance = pred[0].new_zeros(len(pred[0]))
        for a, b, importance in zip(pred, target, self.importance, strict=True):
            difference = (a - b).square_()
            distance += torch.einsum("bchw,c->b", difference, importance) / (
                difference.shape[2] * difference.shape[3]
            )
        return distance

    def _scaled(self, picture: Tensor) -> Tensor:
        return ((2 * picture.to(self.shift) - 1) - self.shift) / self.scale

    def _layer(self, index: int, features: Tensor) -> Tensor:
        """Return the features of a layer after its ReLU from those of the layer before."""
        if index == 0:
            return self._first(features)
        if index in (1, 2):
            features = _halved(F.max_pool2d(features, 3, stride=1))
        return F.relu_(self.convolutions[index](features))

    def _first(self, picture: Tensor) -> Tensor:
        """Return the first layer's features, strip by strip: they are large before the blur."""
        layer = self.convolutions[0]
        side, channels = layer.kernel_size[0], layer.out_channels
        picture = F.pad(picture, (2, 2, 2, 2))
        height, width = (n - side + 1 for n in picture.shape[2:])  # of the convolution
        rows = (height + 1) // 2 + 1  # of the result
        step = max(8, _STRIP_VALUES // (2 * width * channels * len(picture)))
        strips = []
        for start in range(0, rows, step):
            # Row i of the result is made of rows 2i - 2 .. 2i, reflected at the edges.
            low, high = 2 * start - 2, 2 * min(start + step, rows) - 1
            low = min(low, (height - 4) // 2 * 2)  # a strip of one row has enough to reflect
            first, last = max(low, 0), min(high, height)
            features = layer(picture[:, :, first : last + side - 1])
            strip = _halved(features, top=first - low, bottom=high - last)
            strips.append(strip[:, :, start - (low + 2) // 2 :])
        return F.relu_(torch.cat(strips, dim=2))


def _halved(features: Tensor, top: int = 2, bottom: int = 2) -> Tensor:
    """Blur by the binomial [1, 2, 1] along both axes and keep every second pixel.

    Args:
        features: [B, C, H, W].
        top: rows to reflect at the upper edge; at the left and the right they are 2.
        bottom: rows to reflect at the lower edge.
    """
    taps = features.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(taps, taps).expand(features.shape[1], 1, 3, 3)
    padded = F.pad(features, (2, 2, top, bottom), mode="reflect")
    return F.conv2d(padded, kernel, stride=2, groups=features.shape[1])


def _check(name: str, picture: Tensor) -> None:
    if not isinstance(picture, Tensor) or not picture.is_floating_point():
        kind = getattr(picture, "dtype", type(picture).__name__)
        raise TypeError(f"{name}: expected a floating tensor in 0..1, got {kind}")
    if picture.dim() != 4 or picture.shape[1] != 3 or min(picture.shape[2:]) < LEAST_SIDE:
        raise ValueError(
            f"{name}: expected shape [B, 3, H, W], H and W at least {LEAST_SIDE}, "
            f"got {list(picture.shape)}"
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MissingWeightsError(f"{path} cannot be read: {reason}") from None
    if not isinstance(state, dict):
        raise MissingWeightsError(f"{path}: expected a state dict, got {type(state).__name__}")
    return state


def _take(
    path: Path, state: dict[str, Tensor], key: str, shape: tuple[int, ...] | torch.Size
) -> Tensor:
    tensor = state.get(key)
    if not isinstance(tensor, Tensor) or tensor.shape != torch.Size(shape):
        got = "nothing" if not isinstance(tensor, Tensor) else list(tensor.shape)
        raise MissingWeightsError(f"{path}: {key}: expected shape {list(shape)}, got {got}")
    return tensor.float()
