"""Ways to restore a picture, to be compared with each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasr_ops.bench.peers import ANIMEVIDEO, X4PLUS
from dasr_ops.models import DASR, SRResNet, Upscaler
from dasr_ops.models.pictures import PictureError

from ..watch.pairs import read_rgb
from ..watch.samples import Sample

Method = Callable[[Sample], Tensor]
"""Maps a sample to SR, uint8 or float in 0..1 (about), [1, 3, H, W]."""

METHODS = {
    "bicubic": "bicubic",
    "static": "SRResNet, same body",
    "dasr": "DASR",
    "true-v": "DASR, true v",
    "mean-v": "DASR, mean v",
    "x4plus": "Real-ESRGAN x4plus",
    "animevideov3": "Real-ESRGAN animevideov3",
}
"""Methods by key, and how they are called in tables."""

PEERS = {"x4plus": X4PLUS, "animevideov3": ANIMEVIDEO}
"""Methods that are other people's networks, and the names of these, see `bench.peers.load`."""

DASR_METHODS = ("dasr", "true-v", "mean-v")
"""Methods that need a DASR."""

_TILE = 256


@dataclass
class Networks:
    """The networks to compare.

    Attributes:
        dasr: networks of P and G, by the names that tell them apart in tables.
        static: a network without experts, or None.
        peers: other people's networks by their keys in `METHODS`; they have an attribute
            ``upscale``, and map pictures [B, 3, H, W], 0..1, to larger ones.
        device: where to compute.
        dtype: of the features.
        tile: side of the largest square of LR pixels that DASR sees at a time; 0: no limit. Tiles
            have so much context that the result does not depend on it.
    """

    dasr: Mapping[str, DASR] = field(default_factory=dict)
    static: SRResNet | None = None
    peers: Mapping[str, nn.Module] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    tile: int = _TILE

    @property
    def scale(self) -> int | None:
        """The magnification of the networks, None without any.

        Raises:
            ValueError: they do not agree.
        """
        networks = (*self.dasr.values(), self.static, *self.peers.values())
        scales = {net.upscale for net in networks if net is not None}
        if len(scales) > 1:
            raise ValueError(f"networks: expected one magnification, got {sorted(scales)}")
        return next(iter(scales), None)

    def upscalers(self) -> dict[str, Upscaler]:
        """Return each DASR in bounded memory.

        Raises:
            ValueError: there is none.
        """
        if not self.dasr:
            raise ValueError("networks: expected a DASR, got none")
        return {name: self._upscaler(network) for name, network in self.dasr.items()}

    def _upscaler(self, network: DASR) -> Upscaler:
        radius = network.receptive_field_radius
        tile = 0 if self.tile == 0 else max(self.tile, 4 * radius)
        return Upscaler(
            network.eval(), tile=tile, overlap=radius, device=self.device, dtype=self.dtype
        )


def network_methods(
    names: Sequence[str], networks: Networks, scale: int, mean: Tensor | None = None
) -> dict[str, Method]:
    """Return methods by their names in tables, where several DASR have their own names too.

    Args:
        names: keys of `METHODS`.
        networks: those that the methods need.
        scale: the magnification, for bicubic interpolation.
        mean: v [33] for "mean-v".

    Raises:
        ValueError: an unknown name, or the network or the vector that it needs is missing.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(f"methods: expected names among {list(METHODS)}, got {list(names)}")
    chosen: dict[str, Method] = {}
    upscalers = networks.upscalers() if set(names) & set(DASR_METHODS) else {}
    for name in names:
        if name == "bicubic":
            chosen[METHODS[name]] = _bicubic(scale)
        elif name == "static":
            if networks.static is None:
                raise ValueError("methods: static needs the weights of a static network")
            chosen[METHODS[name]] = _whole(networks.static, networks)
        elif name in PEERS:
            if name not in networks.peers:
                raise ValueError(f"methods: {name} needs its network among the peers")
            chosen[METHODS[name]] = _whole(networks.peers[name], networks)
        elif name == "mean-v" and mean is None:
            raise ValueError("methods: mean-v needs the mean vector")
        else:
            for which, upscaler in upscalers.items():
                own = f"DASR {which}" if len(upscalers) > 1 else "DASR"
                chosen[METHODS[name].replace("DASR", own, 1)] = _dasr(upscaler, name, mean)
    return chosen


def folder_method(paths: Mapping[str, Path]) -> Method:
    """Return a method that reads pictures restored before.

    Args:
        paths: name -> file.
    """

    def restored(sample: Sample) -> Tensor:
        path = paths[sample.name]
        try:
            return read_rgb(path)
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from None

    return restored


def _lr(sample: Sample) -> Tensor:
    if sample.lr is None:
        raise ValueError("methods: expected LR pictures, got ground truth alone")
    return sample.lr.float() / 255


def _bicubic(scale: int) -> Method:
    # With antialias the kernel is that of Pillow and MATLAB (a = -0.5), not OpenCV's.
    return lambda sample: F.interpolate(
        _lr(sample), scale_factor=scale, mode="bicubic", antialias=True
    )


def _whole(network: nn.Module, networks: Networks) -> Method:
    """Return a network that sees the whole picture."""
    place = {"device": networks.device, "dtype": networks.dtype}
    network = network.eval().to(**place, memory_format=torch.channels_last)

    @torch.no_grad()
    def restored(sample: Sample) -> Tensor:
        lr = _lr(sample).to(**place, memory_format=torch.channels_last)
        return network(lr).float().cpu()

    return restored


def _dasr(upscaler: Upscaler, name: str, mean: Tensor | None) -> Method:
    def restored(sample: Sample) -> Tensor:
        v = None
        if name == "true-v":
            v = sample.v
            if v is None:
                raise PictureError("the true degradation vector is not known")
        elif name == "mean-v":
            v = mean[None]
        return upscaler(_lr(sample), degradation=v)

    return restored
