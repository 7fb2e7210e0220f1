"""Descriptions for spandrel, by which chaiNNer and programs like it load networks.

After ``register()``, ``spandrel.ModelLoader().load_from_file("model.safetensors")`` loads our
one-file checkpoints, merged networks, and BasicSR's MSRResNet, which has the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint import _generator_config, _predictor_config
from ..dasr import DASR
from ..generator import SRResNet
from ..tiling import cut, upscale_bands

if TYPE_CHECKING:
    import spandrel

DASR_ID = "DASR"
MERGED_ID = "MSRResNet"

_TILE = 256
_PREDICTED_AT_ONCE = 1 << 18
_DASR_KEYS = ("net_g.conv_first.weight", "net_p.ConvNet.0.weight", "net_p.MappingNet.1.weight")
_MERGED_KEYS = ("conv_first.weight", "body.0.conv1.weight", "upconv1.weight", "conv_hr.weight")
_MERGED_NAME = re.compile(
    r"(conv_first|body\.\d+\.conv[12]|upconv[12]|conv_hr|conv_last)\.(weight|bias)"
)


def detect_dasr(state: Mapping[str, Any]) -> bool:
    """Return whether a state dict holds G and P as our checkpoints do."""
    return all(key in state for key in _DASR_KEYS) and _rank(state[_DASR_KEYS[0]]) == 5


def detect_merged(state: Mapping[str, Any]) -> bool:
    """Return whether a state dict is that of a static SRResNet, and nothing else."""
    return (
        all(key in state for key in _MERGED_KEYS)
        and _rank(state[_MERGED_KEYS[0]]) == 4
        and all(_MERGED_NAME.fullmatch(key) for key in state)
    )


def dasr_config(state: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Read the sizes of the networks off the shapes; for `DASR.from_config`.

    Raises:
        CheckpointError: they are not those of a DASR.
    """
    return {
        "net_g": _generator_config("state dict", _part(state, "net_g.")),
        "net_p": _predictor_config("state dict", _part(state, "net_p.")),
    }


def merged_config(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Read the sizes of a static network off the shapes; arguments of `SRResNet`.

    Raises:
        CheckpointError: they are not those of an SRResNet.
    """
    return _generator_config("state dict", state, experts=False)


@torch.no_grad()
def upscale_whole(model: DASR, image: Tensor, tile: int = _TILE) -> Tensor:
    """Magnify with bounded memory: P sees all of the picture, G one tile after the other.

    Args:
        model: the networks.
        image: [B, C, H, W], 0..1, of the type and device of ``model``.
        tile: side of the largest square that G sees, context included, in pixels of ``image``.

    Returns:
        [B, C, H * upscale, W * upscale], of the type of ``image``, not clamped.
    """
    weights = model.predict(image, _PREDICTED_AT_ONCE).weights
    scale, radius = model.upscale, model.receptive_field_radius
    tile = max(tile, 4 * radius)
    batch, channels, height, width = image.shape
    output = image.new_empty(batch, channels, height * scale, width * scale)
    rows, columns = cut(height, tile, radius, radius), cut(width, tile, radius, radius)
    bands = upscale_bands(image, lambda part: model(part, weights=weights), rows, columns, scale)
    for first, band in bands:
        output[:, :, first : first + band.shape[2]] = band
    return output


def architectures() -> tuple[spandrel.ArchSupport, ...]:
    """Return what `register` adds, for a registry of one's own.

    Raises:
        ImportError: spandrel, or the torchvision that it needs, is missing or broken.
    """
    try:
        import spandrel
    except Exception as error:  # a torchvision of another torch raises RuntimeError
        raise ImportError(f"spandrel cannot be imported ({error}): pip install spandrel") from None

    class DASRArch(spandrel.Architecture[DASR]):
        def __init__(self) -> None:
            super().__init__(id=DASR_ID, name="DASR", detect=detect_dasr)

        def load(self, state_dict: dict[str, Any]) -> spandrel.ImageModelDescriptor[DASR]:
            config = dasr_config(state_dict)
            model = DASR.from_config(config)
            return spandrel.ImageModelDescriptor(
                model,
                state_dict,
                architecture=self,
                tags=[*_tags(config["net_g"]), f"{config['net_g']['num_models']}experts"],
                # P averages over the picture: tiles made by others would differ in degradation.
                tiling=spandrel.ModelTiling.INTERNAL,
                call_fn=upscale_whole,
                **_common(config["net_g"]),
            )

    class MergedArch(spandrel.Architecture[SRResNet]):
        def __init__(self) -> None:
            super().__init__(id=MERGED_ID, name="MSRResNet", detect=detect_merged)

        def load(self, state_dict: dict[str, Any]) -> spandrel.ImageModelDescriptor[SRResNet]:
            config = merged_config(state_dict)
            return spandrel.ImageModelDescriptor(
                SRResNet(**config),
                state_dict,
                architecture=self,
                tags=_tags(config),
                **_common(config),
            )

    return tuple(
        spandrel.ArchSupport.from_architecture(architecture)
        for architecture in (DASRArch(), MergedArch())
    )


def register(registry: spandrel.ArchRegistry | None = None) -> None:
    """Make spandrel load our files; once is enough, more do no harm.

    Args:
        registry: where to add the architectures; None for the one that all loaders use.

    Raises:
        ImportError: spandrel, or the torchvision that it needs, is missing or broken.
    """
    supported = architectures()
    if registry is None:
        from spandrel import MAIN_REGISTRY

        registry = MAIN_REGISTRY
    registry.add(*supported, ignore_duplicates=True)


def _common(config: Mapping[str, int]) -> dict[str, Any]:
    return {
        "purpose": "SR",
        "supports_half": True,
        "supports_bfloat16": True,
        "scale": config["upscale"],
        "input_channels": config["num_in_ch"],
        "output_channels": config["num_out_ch"],
    }


def _tags(config: Mapping[str, int]) -> list[str]:
    return [f"{config['num_feat']}nf", f"{config['num_block']}nb"]


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}


def _rank(value: Any) -> int:
    return value.dim() if isinstance(value, Tensor) else 0
