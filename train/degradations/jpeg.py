"""JPEG by a real codec (libjpeg through Pillow), on the CPU."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ._checks import check_picture


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


def jpeg_compress(images: Sequence[torch.Tensor], quality: Sequence[int]) -> list[torch.Tensor]:
    """Compress pictures of any sizes, each with its own quality, in one device round trip.

    The values are clamped to 0..1 and rounded to 8 bits, as a file must be.

    Args:
        images: float32 / float64 [C, H, W] each, on one device, sides up to 65500.
        quality: libjpeg quality of each, 1..100.

    Returns:
        The decoded pictures, dtype and device of the inputs, multiples of 1/255.

    Raises:
        TypeError, ValueError: bad pictures, another count of qualities, quality out of range.
    """
    if len(images) != len(quality):
        raise ValueError(f"quality: expected {len(images)} values, got {len(quality)}")
    for image, value in zip(images, quality, strict=True):
        check_picture(image, "images")
        if not 1 <= value <= 100 or value != int(value):
            raise ValueError(f"quality: expected whole numbers in 1..100, got {value}")
    if not images:
        return []
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
