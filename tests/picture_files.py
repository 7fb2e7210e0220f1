"""Pictures for tests, and files of kinds that Pillow cannot write."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

from dasr_ops.models.pictures import Picture

WIDTH, HEIGHT = 14, 10
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types


def rgb(seed: int = 0) -> Image.Image:
    """A smooth picture, so that JPEG and palettes stay close."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = (x * 12 + 20, y * 20 + 10, 200 - x * 5 - y * 6 + seed)
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def alpha() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(((x + y) * 10).astype(np.uint8))


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(alpha())
    return image


def deep_grey() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray((x * 4000 + y * 100 + 7).astype(np.uint16))


def noise(*shape: int, bits: int = 16, seed: int = 0) -> np.ndarray:
    """Random values of all ``bits`` bits."""
    dtype = np.uint16 if bits > 8 else np.uint8
    return np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype)


def picture(channels: int, bits: int = 16, height: int = 9, width: int = 13) -> Picture:
    """A random picture of 1 (grey), 2 (with opacity), 3 (RGB) or 4 channels."""
    values = noise(height, width, channels, bits=bits, seed=channels)
    color = values[..., 0] if channels < 3 else values[..., :3]
    opacity = values[..., -1] if channels in (2, 4) else None
    contiguous = None if opacity is None else np.ascontiguousarray(opacity)
    return Picture(np.ascontiguousarray(color), contiguous)


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(
    values: np.ndarray, bits: int, color_type: int, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of [H, W, C] values of 1 to 16 bits, unfiltered, with chunks around the pixels."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if bits == 16:
        packed = np.frombuffer(rows.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    else:
        digits = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(digits.reshape(height, -1).astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    body = before + png_chunk(b"IDAT", zlib.compress(lines)) + after
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND")


def exif(orientation: int | None = None) -> bytes:
    """EXIF data with an exposure time, a pixel size that becomes wrong, and a place."""
    data = Image.Exif()
    if orientation is not None:
        data[0x0112] = orientation
    data[0x010F] = "Maker"
    data[0x8769] = {0xA002: WIDTH, 0xA003: HEIGHT, 0x829A: 0.25}
    data[0x8825] = {1: "N", 2: (48.0, 8.0, 15.0)}
    return data.tobytes()


def gif_frame(
    indices: np.ndarray,
    offset: tuple[int, int] = (0, 0),
    *,
    delay: int = 10,
    disposal: int = 0,
    transparent: int | None = None,
) -> bytes:
    """One frame of a GIF of up to 128 colours, its codes not compressed."""
    flags = disposal << 2 | (transparent is not None)
    control = b"!\xf9\x04" + struct.pack("<BHBB", flags, delay, transparent or 0, 0)
    height, width = indices.shape
    place = b"," + struct.pack("<HHHHB", *offset, width, height, 0)
    # Codes of 8 bits: 128 clears the table, often enough that codes never grow; 129 ends.
    codes = bytearray()
    for start in range(0, indices.size, 100):
        codes.append(128)
        codes += indices.reshape(-1)[start : start + 100].tobytes()
    codes.append(129)
    blocks = b"".join(
        bytes([len(codes[i : i + 255])]) + bytes(codes[i : i + 255])
        for i in range(0, len(codes), 255)
    )
    return control + place + b"\x07" + blocks + b"\0"


def gif(size: tuple[int, int], colors: np.ndarray, frames: list[bytes], loop: int | None) -> bytes:
    """A GIF of frames made by `gif_frame`; ``colors`` is uint8 [128, 3]."""
    data = b"GIF89a" + struct.pack("<HHBBB", *size, 0xF6, 0, 0) + colors.tobytes()
    if loop is not None:
        data += b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loop) + b"\0"
    return data + b"".join(frames) + b";"


def assert_same(picture: Picture, values: np.ndarray) -> None:
    """Compare with [H, W, C] of 1 to 4 channels."""
    channels = values.shape[2]
    color = values[..., 0] if channels < 3 else values[..., :3]
    assert np.array_equal(picture.color, color)
    if channels in (2, 4):
        assert np.array_equal(picture.alpha, values[..., -1])
    else:
        assert picture.alpha is None
    assert picture.color.flags.c_contiguous
