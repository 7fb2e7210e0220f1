"""JPEG on the device of the pictures: what libjpeg-turbo's encoder and decoder do to the pixels.

A batch shares one canvas; each picture has its own size (its top left corner of the canvas) and
quality. All is integer arithmetic as in libjpeg, so the results are those of Pillow with
libjpeg-turbo, bit for bit: the colour conversion, the 4:2:0 average with its alternating rounding,
the padding of odd sizes, the scaled tables of ITU T.81 annex K, the transforms with 13-bit
constants (products with whole matrices, exact in float64 whatever the device makes of float32), the
"fancy" triangular chroma upsampling. Nothing is read back from the device.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

# ITU T.81, tables K.1 and K.2.
_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)

# JFIF's conversion (ITU-R BT.601) in 16-bit fixed point.
_TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
_TO_YCC_OFFSET = (32768, (128 << 16) + 32767, (128 << 16) + 32767)  # halves up; chroma around 128
_TO_RGB = ((0, 91881), (-22554, -46802), (116130, 0))


def quantisation_tables(quality: torch.Tensor) -> torch.Tensor:
    """Scale the standard tables as libjpeg does (baseline: steps of 1..255).

    Args:
        quality: int64 [B], 1..100, on the CPU.

    Returns:
        float32 [B, 2, 64], luma and chroma, rows first.
    """
    factor = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    base = torch.tensor([_LUMA, _CHROMA])
    return ((base * factor[:, None, None] + 50) // 100).clamp(1, 255).float()


_BITS = 13  # of the constants of the transform
_EXTRA = 2  # bits kept between its two passes


def _transform() -> np.ndarray:
    """int64 [8, 8], rows by frequency: the DCT times 2^13 sqrt(8), with rounded constants.

    The factors are those of Loeffler, Ligtenberg, Moschytz, "Practical fast 1-D DCT algorithms with
    11 multiplications" (ICASSP 1989). Each is rounded before they are added up, as libjpeg does.
    """

    def fix(value: float) -> int:
        return round(value * 2**_BITS)

    x = np.eye(8, dtype=np.int64)
    even, odd = x[:4] + x[:3:-1], x[:4] - x[:3:-1]
    s0, s1 = even[0] + even[3], even[1] + even[2]
    d0, d1 = even[0] - even[3], even[1] - even[2]
    turn = (d1 + d0) * fix(0.541196100)
    out = np.zeros_like(x)
    out[0], out[4] = (s0 + s1) << _BITS, (s0 - s1) << _BITS
    out[2] = turn + d0 * fix(0.765366865)
    out[6] = turn - d1 * fix(1.847759065)
    o0, o1, o2, o3 = odd
    common = (o3 + o1 + o2 + o0) * fix(1.175875602)
    z1, z2 = -(o3 + o0) * fix(0.899976223), -(o2 + o1) * fix(2.562915447)
    z3 = common - (o3 + o1) * fix(1.961570560)
    z4 = common - (o2 + o0) * fix(0.390180644)
    out[7] = o3 * fix(0.298631336) + z1 + z3
    out[5] = o2 * fix(2.053119869) + z2 + z4
    out[3] = o1 * fix(3.072711026) + z2 + z3
    out[1] = o0 * fix(1.501321110) + z1 + z4
    return out


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> dict[str, torch.Tensor]:
    def whole(values: object) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32).to(device)

    transform = torch.from_numpy(_transform()).double()
    # One matrix for each pass, with the division by a power of two that follows it.
    return {
        "across": (transform.T * 2.0 ** -(_BITS - _EXTRA)).to(device),
        "down": (transform.T * 2.0 ** -(_BITS + _EXTRA)).to(device),
        "back_down": (transform * 2.0 ** -(_BITS - _EXTRA)).to(device),
        "back_across": (transform * 2.0 ** -(_BITS + _EXTRA + 3)).to(device),
        "to_ycc": whole(_TO_YCC)[..., None, None],
        "to_ycc_offset": whole(_TO_YCC_OFFSET)[:, None, None],
        "to_rgb": whole(_TO_RGB)[..., None, None],
        "dither": whole((1, 2)),
    }


def _pass(blocks: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Transform the rows of blocks and round, halves up.

    All numbers are whole multiples of a power of two with less than 53 bits: exact in float64.
    """
    return (blocks @ matrix).add_(0.5).floor_()


def _blocks(plane: torch.Tensor) -> torch.Tensor:
    """int32 [B, C, H, W] -> [B, N, 8, 8]; sides are multiples of 8."""
    batch, channels, height, width = plane.shape
    tiles = plane.reshape(batch, channels, height // 8, 8, width // 8, 8)
    return tiles.transpose(3, 4).reshape(batch, -1, 8, 8)


def _plane(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    batch, channels, height, width = shape
    tiles = blocks.reshape(batch, channels, height // 8, width // 8, 8, 8)
    return tiles.transpose(3, 4).reshape(shape)


def _code(
    planes: list[torch.Tensor], tables: torch.Tensor, constants: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Transform, quantise and back: int32 [B, C, H, W], sides multiples of 8, each with its table.

    tables: float32 [B, len(planes) or more, 64].
    """
    parts = [_blocks(plane) for plane in planes]
    tables = tables.double().reshape(len(tables), -1, 8, 8).mT  # blocks are turned in between
    steps = [tables[:, i, None].expand_as(part) for i, part in enumerate(parts)]
    step = torch.cat(steps, dim=1)
    blocks = torch.cat(parts, dim=1).double() - 128
    blocks = _pass(blocks, constants["across"])
    blocks = _pass(blocks.mT, constants["down"])  # coefficients times 8
    levels = torch.add(blocks.abs(), step, alpha=4).div_(8 * step).floor_()
    levels = levels.copysign_(blocks).mul_(step)
    blocks = _pass(levels, constants["back_down"])
    blocks = _pass(blocks.mT, constants["back_across"])
    pixels = blocks.add_(128).clamp_(0, 255).int().split([part.shape[1] for part in parts], dim=1)
    return [_plane(part, plane.shape) for part, plane in zip(pixels, planes, strict=True)]


def _take(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Pick rows [B, H'] and columns [B, W'] of [B, C, H, W], each sample's own."""
    channels, width = images.shape[1], images.shape[3]
    picked = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    index = columns[:, None, None, :].expand(-1, channels, picked.shape[2], -1)
    return picked.gather(3, index)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _line(count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(count, device=device)


def _neighbour(count: int, side: torch.Tensor, interpolated: torch.Tensor) -> torch.Tensor:
    """Return [B, count]: for each sample after upsampling, the second chroma sample it mixes in."""
    line = _line(count, side.device)
    beside = line // 2 + torch.where(line % 2 == 0, -1, 1)
    last = (side[:, None] + 1) // 2 - 1
    beside = torch.minimum(beside.clamp(min=0), last.clamp(min=0))
    return torch.where(interpolated[:, None], beside, line // 2)


def jpeg_batched(
    images: torch.Tensor, heights: torch.Tensor, widths: torch.Tensor, tables: torch.Tensor
) -> torch.Tensor:
    """Compress and decompress pictures that lie in the top left corners of a canvas.

    Args:
        images: float32 / float64 [B, C, H, W], C 1 (grey) or 3 (RGB, chroma 4:2:0); clamped to 0..1
            and rounded to 8 bits first.
        heights, widths: int64 [B], true sizes, 1 or more.
        tables: float32 [B, 2, 64], from `quantisation_tables`. All on one device.

    Returns:
        [B, C, H, W], dtype of `images`, multiples of 1/255; beyond the true sizes it means nothing.
    """
    device = images.device
    constants = _constants(device)
    height, width = images.shape[2:]
    multiple = 8 if images.shape[1] == 1 else 16
    # Edges are replicated to whole blocks.
    last_row, last_column = heights[:, None] - 1, widths[:, None] - 1
    rows = torch.minimum(_line(_up(height, multiple), device), last_row)
    columns = torch.minimum(_line(_up(width, multiple), device), last_column)
    pixels = (images.clamp(0, 1) * 255).round().int()
    pixels = _take(pixels, rows, columns)
    if images.shape[1] == 1:
        decoded = _code([pixels], tables, constants)[0]
    else:
        decoded = _colour(pixels, heights, widths, tables, constants)
    return decoded[:, :, :height, :width].to(images.dtype) / 255


def _colour(
    pixels: torch.Tensor,
    heights: torch.Tensor,
    widths: torch.Tensor,
    tables: torch.Tensor,
    constants: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Compress int32 RGB [B, 3, H, W], sides multiples of 16, edges replicated."""
    device = pixels.device
    batch, _, height, width = pixels.shape
    ycc = (pixels[:, None] * constants["to_ycc"]).sum(2, dtype=torch.int32)
    ycc = (ycc + constants["to_ycc_offset"]) >> 16
    sums = (
        ycc[:, 1:].reshape(batch, 2, height // 2, 2, width // 2, 2).sum((3, 5), dtype=torch.int32)
    )
    chroma = (sums + constants["dither"].repeat(width // 4)) >> 2
    # Below the picture the last row of averages goes on, not the average of the last row.
    rows = torch.minimum(_line(height // 2, device), (heights[:, None] + 1) // 2 - 1)
    chroma = chroma.gather(2, rows[:, None, :, None].expand(-1, 2, -1, width // 2))
    luma, chroma = _code([ycc[:, :1], chroma], tables, constants)

    # Each new sample is 3/4 the nearest old one and 1/4 the next nearest, down and across; chroma
    # planes up to 2 columns wide are repeated instead.
    interpolated = widths > 4
    near = _line(max(height, width), device) // 2
    beside = _neighbour(height, heights, interpolated)
    down = 3 * chroma.index_select(2, near[:height])
    down = down + chroma.gather(2, beside[:, None, :, None].expand(-1, 2, -1, width // 2))
    beside = _neighbour(width, widths, interpolated)
    across = 3 * down.index_select(3, near[:width])
    across = across + down.gather(3, beside[:, None, None, :].expand(-1, 2, height, -1))
    rounding = 8 - _line(width, device).int() % 2
    chroma = ((across + rounding) >> 4) - 128

    shift = (chroma[:, None] * constants["to_rgb"]).sum(2, dtype=torch.int32)
    return (luma + ((shift + 32768) >> 16)).clamp(0, 255)
