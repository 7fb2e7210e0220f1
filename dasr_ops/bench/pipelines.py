"""From picture file to picture file: `dasr upscale`, and plain pipelines around other networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dasr_ops.cli import main as dasr
from dasr_ops.models import load_dasr

from .peers.ncnn_program import NcnnProgram

SCALE = 4


@dataclass(frozen=True)
class Subject:
    """One way to magnify."""

    pipeline: Callable[[Path, Path], None]
    """Reads a picture and writes another."""
    network: Callable[[Tensor], Tensor]
    """Maps a tile [1, 3, H, W] to [1, 3, 4 H, 4 W]."""


def ours(weights: Path, tile: int, context: int) -> Subject:
    """Return ``dasr upscale`` with weights of a file."""

    def pipeline(source: Path, target: Path) -> None:
        arguments = ["upscale", str(source), "-o", str(target), "--weights", str(weights)]
        arguments += ["--tile", str(tile), "--overlap", str(context)]
        code = dasr([*arguments, "--overwrite", "--quiet"])
        if code:
            raise RuntimeError(f"dasr {' '.join(arguments)}: exit code {code}")

    return Subject(pipeline, load_dasr(weights).eval())


def peer(
    network: nn.Module, tile: int, context: int, memory_format: torch.memory_format
) -> Subject:
    """Return the plainest pipeline around a network.

    Args:
        network: maps [1, 3, h, w]; one with ``predict`` maps them with what that returns for the
            whole picture.
        tile: side of a tile, context included; 0 for the whole picture.
        context: LR pixels on each side of a tile that are cut off again.
        memory_format: of pictures and parameters.
    """
    for parameter in network.eval().parameters():
        if parameter.dim() == 4:  # experts have five dimensions
            parameter.data = parameter.data.contiguous(memory_format=memory_format)

    def run(lr: Tensor) -> Tensor:
        return network(lr.contiguous(memory_format=memory_format))

    def pipeline(source: Path, target: Path) -> None:
        with Image.open(source) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
        lr = pixels.permute(2, 0, 1).unsqueeze(0).float() / 255
        lr = lr.contiguous(memory_format=memory_format)
        tiled = run
        if hasattr(network, "predict"):
            weights = network.predict(lr)

            def tiled(lr: Tensor) -> Tensor:
                return network(lr.contiguous(memory_format=memory_format), weights)

        output = magnify(tiled, lr, tile, context)
        values = output.clamp_(0, 1).mul_(255).round_().to(torch.uint8)
        Image.fromarray(values[0].permute(1, 2, 0).contiguous().numpy()).save(target)

    return Subject(pipeline, run)


def program(name: str, tile: int, context: int, folder: Path | None) -> Subject:
    """Return the plainest pipeline around ncnn."""
    run = NcnnProgram(name, folder, max(tile - 2 * context, 0))

    def pipeline(source: Path, target: Path) -> None:
        with Image.open(source) as image:
            pixels = np.array(image.convert("RGB"))
        Image.fromarray(run(pixels)).save(target)

    def network(lr: Tensor) -> Tensor:
        pixels = (lr[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
        return torch.from_numpy(run(pixels.numpy()).copy()).permute(2, 0, 1).unsqueeze(0) / 255

    return Subject(pipeline, network)


def magnify(network: Callable[[Tensor], Tensor], lr: Tensor, tile: int, context: int) -> Tensor:
    """Magnify tile by tile; tiles are put side by side without blending."""
    output = lr.new_empty(1, 3, lr.shape[2] * SCALE, lr.shape[3] * SCALE)
    for top, bottom, first, last in _spans(lr.shape[2], tile, context):
        for left, right, start, stop in _spans(lr.shape[3], tile, context):
            enlarged = network(lr[:, :, top:bottom, left:right])
            kept = enlarged[
                :,
                :,
                (first - top) * SCALE : (last - top) * SCALE,
                (start - left) * SCALE : (stop - left) * SCALE,
            ]
            rows, columns = slice(first * SCALE, last * SCALE), slice(start * SCALE, stop * SCALE)
            output[:, :, rows, columns] = kept
    return output


def _spans(size: int, tile: int, context: int) -> list[tuple[int, int, int, int]]:
    """Return what each tile reads and keeps, as even as those of ``dasr upscale``."""
    if tile == 0 or size <= tile:
        return [(0, size, 0, size)]
    count = -(-size // (tile - 2 * context))
    edges = [size * i // count for i in range(count + 1)]
    return [(max(a - context, 0), min(b + context, size), a, b) for a, b in pairwise(edges)]


def picture(height: int, width: int) -> Tensor:
    """Return [1, 3, height, width], 0..1: octaves of noise, with the spectrum of photographs."""
    generator = torch.Generator().manual_seed(0)
    result, octave = torch.zeros(1, 3, height, width), 1.0
    for step in (128, 64, 32, 16, 8, 4, 2, 1):
        rows, columns = -(-height // step) + 1, -(-width // step) + 1
        coarse = torch.rand(1, 3, rows, columns, generator=generator)
        result += octave * F.interpolate(
            coarse, (height, width), mode="bilinear", align_corners=False
        )
        octave *= 0.6
    low, high = result.aminmax()
    return (result - low) / (high - low)


def write_picture(image: Tensor, path: Path) -> None:
    """Write a picture [1, 3, H, W], 0..1."""
    pixels = (image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(path)
