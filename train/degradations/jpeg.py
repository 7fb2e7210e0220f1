"""JPEG: by a real codec (libjpeg through Pillow) on the CPU, or on the device of the pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image

from ._checks import check_picture, upload
from .jpeg_batched import jpeg_batched, quantisation_tables

Codec = Literal["auto", "pillow", "batched"]
CODECS: tuple[Codec, ...] = ("auto", "pillow", "batched")


def _roundtrip(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode uint8 [C, H, W], C 1 or 3, chroma subsampled 4:2:0."""
    grey = pixels.shape[0] == 1
    picture = Image.fromarray(
        pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    )
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
    decoded = np.asarray(Image.open(buffer))
    return decoded[None] if grey else decoded.transpose(2, 0, 1)


def jpeg_compress(
    images: Sequence[torch.Tensor], quality: Sequence[int], codec: Codec = "auto"
) -> list[torch.Tensor]:
    """Compress pictures of any sizes, each with its own quality.

    The values are clamped to 0..1 and rounded to 8 bits, as a file must be.

    Args:
        images: float32 / float64 [C, H, W] each, of one C, on one device, sides up to 65500.
        quality: libjpeg quality of each, 1..100.
        codec: "pillow" is the real codec, with a round trip to the host. "batched" computes the
            same pixels on the device, all pictures at once, without waiting for it
            (`jpeg_batched`). "auto" is the first for pictures on the CPU, the second elsewhere.

    Returns:
        The decoded pictures, dtype and device of the inputs, multiples of 1/255.

    Raises:
        TypeError, ValueError: bad pictures, another count of qualities, quality out of range,
            unknown codec.
    """
    if codec not in CODECS:
        raise ValueError(f"codec: expected one of {CODECS}, got {codec!r}")
    if len(images) != len(quality):
        raise ValueError(f"quality: expected {len(images)} values, got {len(quality)}")
    for image, value in zip(images, quality, strict=True):
        check_picture(image, "images")
        if not 1 <= value <= 100 or value != int(value):
            raise ValueError(f"quality: expected whole numbers in 1..100, got {value}")
    if len({image.shape[0] for image in images}) > 1:
        raise ValueError("images: expected all grey or all RGB, got a mixture")
    if not images:
        return []
    if codec == "pillow" or (codec == "auto" and images[0].device.type == "cpu"):
        return _by_pillow(images, quality)
    return _on_device(images, quality)


def _by_pillow(images: Sequence[torch.Tensor], quality: Sequence[int]) -> list[torch.Tensor]:
    device = images[0].device
    flat = torch.cat([(x.clamp(0, 1) * 255).round().to(torch.uint8).flatten() for x in images])
    pixels = flat.cpu().numpy()
    out, start = [], 0
    for image, value in zip(images, quality, strict=True):
        block = pixels[start : start + image.numel()].reshape(image.shape)
        out.append(_roundtrip(block, int(value)).reshape(-1))
        start += image.numel()
    decoded = torch.from_numpy(np.concatenate(out)).to(device)
    parts = decoded.split([x.numel() for x in images])
    return [
        (part.to(x.dtype) / 255).reshape(x.shape) for part, x in zip(parts, images, strict=True)
    ]


def _on_device(images: Sequence[torch.Tensor], quality: Sequence[int]) -> list[torch.Tensor]:
    first = images[0]
    sides = torch.tensor([image.shape[1:] for image in images])
    height, width = sides.amax(dim=0).tolist()
    canvas = first.new_zeros((len(images), first.shape[0], height, width))
    for place, image in zip(canvas, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    heights, widths = upload(sides.T.contiguous(), first.device)
    tables = upload(quantisation_tables(torch.tensor([int(q) for q in quality])), first.device)
    decoded = jpeg_batched(canvas, heights, widths, tables)
    return [
        place[:, : image.shape[1], : image.shape[2]].to(image.dtype)
        for place, image in zip(decoded, images, strict=True)
    ]
