"""Writes networks in ncnn's format, for the tests of what reads them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from dasr_ops.bench.peers.realesrgan import RRDBNet, SRVGGNetCompact

LEAKY = "9=2 -23310=1,2.000000e-01"


class Writer:
    """Collects layers, and writes them as ``name.param`` and ``name.bin``."""

    def __init__(self, half: bool) -> None:
        self.lines = ["Input in 0 1 data"]
        self.data = b""
        self._half = half

    def add(self, kind: str, inputs: list[str], params: str = "") -> str:
        """Add a layer of one output, and return that output's name."""
        name = f"blob{len(self.lines)}"
        self.lines.append(
            f"{kind} {kind}_{len(self.lines)} {len(inputs)} 1 {' '.join(inputs)} {name} {params}"
        )
        return name

    def conv(self, layer: nn.Conv2d, blob: str, params: str = "") -> str:
        outputs, size = layer.weight.shape[0], layer.weight.numel()
        kernel = layer.weight.detach().numpy().tobytes()
        if self._half:
            kernel = layer.weight.detach().numpy().astype("<f2").tobytes()
        self.data += struct.pack("<I", 0x01306B47 if self._half else 0)
        self.data += kernel + b"\0" * (-len(kernel) % 4)
        self.data += plain(layer.bias)
        return self.add("Convolution", [blob], f"0={outputs} 1=3 4=1 5=1 6={size} {params}")

    def prelu(self, layer: nn.PReLU, blob: str) -> str:
        self.data += plain(layer.weight)
        return self.add("PReLU", [blob], f"0={layer.weight.numel()}")

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        param, weights = folder / f"{name}.param", folder / f"{name}.bin"
        text = "\n".join(["7767517", f"{len(self.lines)} {len(self.lines)}", *self.lines])
        param.write_text(text + "\n")
        weights.write_bytes(self.data)
        return param, weights


def plain(values: Tensor) -> bytes:
    return values.detach().numpy().astype(np.float32).tobytes()


def write_rrdb_net(network: RRDBNet, folder: Path, name: str, half: bool) -> tuple[Path, Path]:
    """Write a network layer by layer, as the converters of ncnn do."""
    writer = Writer(half)
    trunk = block = writer.conv(network.conv_first, "data")
    for rrdb in network.body:
        start = block
        for dense in (rrdb.rdb1, rrdb.rdb2, rrdb.rdb3):
            known = [block]
            for conv in (dense.conv1, dense.conv2, dense.conv3, dense.conv4):
                blob = writer.add("Concat", known) if len(known) > 1 else known[0]
                known.append(writer.conv(conv, blob, LEAKY))
            last = writer.conv(dense.conv5, writer.add("Concat", known))
            block = writer.add("Eltwise", [last, block], "0=1 -23301=2,2.0e-01,1.0e+00")
        block = writer.add("Eltwise", [block, start], "0=1 -23301=2,2.0e-01,1.0e+00")
    blob = writer.add("BinaryOp", [trunk, writer.conv(network.conv_body, block)])
    for conv in (network.conv_up1, network.conv_up2):
        blob = writer.add("Interp", [blob], "0=1 1=2.0e+00 2=2.0e+00")
        blob = writer.conv(conv, blob, LEAKY)
    writer.conv(network.conv_last, writer.conv(network.conv_hr, blob, LEAKY))
    return writer.write(folder, name)


def write_compact(
    network: SRVGGNetCompact, folder: Path, name: str, half: bool
) -> tuple[Path, Path]:
    """Write a network layer by layer, as the converters of ncnn do."""
    writer = Writer(half)
    blob = "data"
    for layer in network.body:
        convolves = isinstance(layer, nn.Conv2d)
        blob = writer.conv(layer, blob) if convolves else writer.prelu(layer, blob)
    blob = writer.add("PixelShuffle", [blob], f"0={network.upscale}")
    enlarged = writer.add("Interp", ["data"], f"0=1 1={network.upscale}.0 2={network.upscale}.0")
    writer.add("BinaryOp", [blob, enlarged])
    return writer.write(folder, name)
