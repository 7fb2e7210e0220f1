"""Samples to RGB and back: matrices, ranges, depths and the position of chroma."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="PyAV is not installed")

from dasr_ops.models.video.color import Colors, from_rgb, to_plane, to_rgb, to_tensor
from dasr_ops.models.video.layout import Layout, layout_of

# ITU-R BT.601-7, BT.709-6 and BT.2020-2, as printed there.
WEIGHTS = {
    6: (0.299, 0.587, 0.114),
    5: (0.299, 0.587, 0.114),
    1: (0.2126, 0.7152, 0.0722),
    9: (0.2627, 0.6780, 0.0593),
}


def encode(rgb: np.ndarray, matrix: int, full: bool, depth: int) -> list[np.ndarray]:
    """The standards' formulas: RGB [3, H, W] to unrounded Y, Cb, Cr."""
    red, green, blue = rgb
    kr, kg, kb = WEIGHTS[matrix]
    y = kr * red + kg * green + kb * blue
    cb, cr = (blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)
    unit = 2.0 ** (depth - 8)
    if full:
        peak = 2.0**depth - 1
        return [y * peak, cb * peak + 128 * unit, cr * peak + 128 * unit]
    return [(219 * y + 16) * unit, (224 * cb + 128) * unit, (224 * cr + 128) * unit]


@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10, 16])
def test_both_ways_follow_the_standards(matrix, full, depth):
    rgb = np.random.default_rng(0).random((3, 6, 8))
    layout, colors = Layout("yuv", depth), Colors(matrix, full)
    exact = encode(rgb, matrix, full, depth)
    made = from_rgb(torch.from_numpy(rgb).float()[None], layout, colors)
    tolerance = 0.5 + 2.0**depth * 2e-7 * 4  # rounding, and float32
    for ours, theirs in zip(made, exact, strict=True):
        assert ours.dtype == (np.uint8 if depth == 8 else np.uint16)
        assert np.abs(ours - theirs).max() <= tolerance
    back = to_rgb(made, layout, colors)[0].double().numpy()
    # Half a step in each of three samples, the largest weight of chroma being 1.9.
    assert np.abs(back - rgb).max() <= 0.5 * (1 + 2 * 1.9) / (219 * 2 ** (depth - 8)) + 1e-6


@pytest.mark.parametrize(("full", "black", "white"), [(False, 16, 235), (True, 0, 255)])
def test_grey_ramps_keep_black_and_white(full, black, white):
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)
    middle = np.full((1, 128), 128, np.uint8)
    layout = Layout("yuv", 8, 1, 1)
    for matrix in WEIGHTS:
        colors = Colors(matrix, full)
        rgb = to_rgb([ramp, middle, middle], layout, colors)[0]
        assert torch.equal(rgb[0], rgb[1]) and torch.equal(rgb[1], rgb[2])
        assert rgb[0, 0, black] == 0 and rgb[0, 0, white] == 1
        assert (rgb[0, 0, black : white + 1].diff() > 0).all()
        luma, cb, cr = from_rgb(rgb[None], layout, colors)
        assert np.array_equal(luma, ramp.clip(black, white))
        assert (cb == 128).all() and (cr == 128).all()


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("shifts", [(1, 1), (1, 0), (2, 0), (2, 2), (0, 1)])
def test_chroma_lies_where_the_standards_put_it(centered, shifts):
    """A plane a + b x + c y of chroma, sampled at its positions, is hit at those of luma."""
    shift_x, shift_y = shifts
    height, width = 32, 40
    step_x, step_y = 1 << shift_x, 1 << shift_y
    layout = Layout("yuv", 16, shift_x, shift_y)
    x = np.arange(width // step_x) * step_x + ((step_x - 1) / 2 if centered else 0)
    y = np.arange(height // step_y) * step_y + (step_y - 1) / 2
    plane = 20000 + 500 * x[None] + 300 * y[:, None]
    samples = [
        np.full((height, width), 30000, np.uint16),
        plane.astype(np.uint16),
        np.full(plane.shape, 32768, np.uint16),
    ]
    colors = Colors(1, True, centered)
    rgb = to_rgb(samples, layout, colors)[0].double().numpy()
    blue = rgb[2] - 30000 / 65535
    chroma = blue / (2 - 2 * 0.0722) * 65535 + 32768
    wanted = 20000 + 500 * np.arange(width)[None] + 300 * np.arange(height)[:, None]
    inner = np.s_[step_y:-step_y, step_x:-step_x]
    assert np.abs(chroma - wanted)[inner].max() <= 1.5  # truncated samples, and float32
    again = from_rgb(torch.from_numpy(rgb).float()[None], layout, colors)[1].astype(float)
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(again - plane)[inner].max() <= 2.5


def test_odd_sizes_keep_every_sample():
    layout = Layout("yuv", 8, 1, 1)
    planes = [np.full(size[::-1], 128, np.uint8) for size in layout.plane_sizes(7, 5)]
    assert [plane.shape for plane in planes] == [(5, 7), (3, 4), (3, 4)]
    assert to_rgb(planes, layout, Colors(6, False)).shape == (1, 3, 5, 7)
    made = from_rgb(torch.rand(1, 3, 5, 7), layout, Colors(6, False))
    assert [plane.shape for plane in made] == [(5, 7), (3, 4), (3, 4)]


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_rgb_is_exact(depth):
    layout = Layout("rgb", depth)
    kind = np.uint8 if depth == 8 else np.uint16
    planes = [np.random.default_rng(i).integers(0, 2**depth, (4, 5)).astype(kind) for i in range(3)]
    rgb = to_rgb(planes, layout, Colors(1, True))
    assert np.allclose(rgb[0, 0].numpy(), planes[2] / (2**depth - 1), atol=1e-6)  # G, B, R
    again = from_rgb(rgb, layout, Colors(1, True))
    assert all(np.array_equal(a, b) for a, b in zip(again, planes, strict=True))


def test_sixteen_bits_survive_torch():
    samples = np.array([[0, 1, 32767, 32768, 65535]], np.uint16)
    values = to_tensor(samples, "cpu")
    assert values.tolist() == samples.astype(float).tolist()
    assert np.array_equal(to_plane(values, 65535), samples)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("yuv420p", "yuv420p"),
        ("yuvj422p", "yuv422p"),
        ("nv12", "yuv420p"),
        ("p010le", "yuv420p10le"),
        ("yuyv422", "yuv422p"),
        ("yuv420p10be", "yuv420p10le"),
        ("yuv410p", "yuv410p"),
        ("yuva420p10le", "yuva420p10le"),
        ("yuva444p12le", "yuva444p12le"),
        ("gray", "gray"),
        ("gray12le", "gray12le"),
        ("monob", "gray"),
        ("rgb24", "gbrp"),
        ("bgra", "gbrap"),
        ("pal8", "gbrp"),
        ("rgb48le", "gbrp16le"),
        ("x2rgb10le", "gbrp10le"),
        ("rgb565le", "gbrp"),
    ],
)
def test_layouts_hold_all_of_a_format(name, wanted):
    assert layout_of(name).name == wanted
