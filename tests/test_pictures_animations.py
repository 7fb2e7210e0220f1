"""Animations: frames as they are seen, their times, and how often they play."""

from __future__ import annotations

import io
import struct
import warnings
import weakref

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from dasr_ops.models.pictures import (
    Picture,
    PictureError,
    PictureWarning,
    gif_writer,
    open_animation,
    write_animation,
)
from tests.picture_files import exif, gif, gif_frame, noise, picture, png, png_chunk, rgb

WIDTH, HEIGHT = 24, 18
COLORS = np.random.default_rng(5).integers(0, 256, (128, 3), dtype=np.uint8)


def _frames(count: int, bits: int = 8, alpha: bool = False) -> list[Picture]:
    """A square that moves over a smooth background."""
    result = []
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    for index in range(count):
        color = np.stack([x * 9 + 20, y * 12 + 10, 200 - x * 2 - y * 3], 2).astype(np.uint8)
        color[4:9, 2 + index : 8 + index] = (250, 30, 40)
        opacity = np.full((HEIGHT, WIDTH), 255, np.uint8)
        opacity[:, : index + 1] = 0
        dtype, factor = (np.uint16, 257) if bits == 16 else (np.uint8, 1)
        opacity = opacity.astype(dtype) * dtype(factor) if alpha else None
        result.append(Picture(color.astype(dtype) * dtype(factor), opacity))
    return result


def _seen(frames: list[tuple], size: tuple[int, int]) -> list[np.ndarray]:
    """Compose GIF frames by the letter of the specification: (indices, offset, disposal, clear)."""
    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    result = []
    for indices, (left, top), disposal, transparent in frames:
        before = canvas.copy()
        area = canvas[top : top + indices.shape[0], left : left + indices.shape[1]]
        visible = np.ones(indices.shape, bool) if transparent is None else indices != transparent
        area[visible, :3] = COLORS[indices[visible]]
        area[visible, 3] = 255
        result.append(canvas.copy())
        if disposal == 2:  # to the background: nothing, or a colour where nothing is transparent
            area[:] = 0 if transparent is not None else (*COLORS[0], 255)
        elif disposal == 3:
            canvas = before
    return result


def _rgba(frame: Picture) -> np.ndarray:
    color = frame.color if frame.color.ndim == 3 else np.stack([frame.color] * 3, axis=2)
    alpha = np.full(color.shape[:2], 255) if frame.alpha is None else frame.alpha
    return np.concatenate([color, alpha[..., None]], axis=2)


def _check(frames: list[Picture], expected: list[np.ndarray]) -> None:
    assert len(frames) == len(expected)
    for frame, wanted in zip(frames, expected, strict=True):
        seen = wanted[..., 3] > 0
        got = _rgba(frame)
        assert np.array_equal(got[..., 3], wanted[..., 3])
        assert np.array_equal(got[seen], wanted[seen])


@pytest.mark.parametrize("disposals", [(0, 0, 0, 0), (1, 2, 1, 2), (2, 2, 2, 2), (1, 3, 3, 1)])
@pytest.mark.parametrize("transparent", [None, 7])
def test_gif_is_composed(tmp_path, disposals, transparent):
    parts = [((HEIGHT, WIDTH), (0, 0)), ((6, 9), (4, 3)), ((8, 5), (15, 9)), ((5, 24), (0, 2))]
    frames = []
    for index, ((shape, offset), disposal) in enumerate(zip(parts, disposals, strict=True)):
        indices = noise(*shape, bits=7, seed=index)
        indices[noise(*shape, bits=1, seed=9 + index) == 0] = 7
        frames.append((indices, offset, disposal, transparent))
    data = [
        gif_frame(indices, offset, disposal=disposal, transparent=clear)
        for indices, offset, disposal, clear in frames
    ]
    (tmp_path / "a.gif").write_bytes(gif((WIDTH, HEIGHT), COLORS, data, 0))
    animation = open_animation(tmp_path / "a.gif")
    assert animation.size == (WIDTH, HEIGHT)
    assert animation.num_frames == 4
    _check(list(animation), _seen(frames, (WIDTH, HEIGHT)))
    _check(list(animation), _seen(frames, (WIDTH, HEIGHT)))  # again from the start


@pytest.mark.parametrize(("extension", "loop"), [(None, 1), (0, 0), (1, 2), (5, 6)])
def test_loop_and_durations_of_a_gif(tmp_path, extension, loop):
    delays = [0, 1, 7, 250]
    data = [gif_frame(noise(4, 5, bits=7, seed=i), delay=d) for i, d in enumerate(delays)]
    (tmp_path / "a.gif").write_bytes(gif((5, 4), COLORS, data, extension))
    animation = open_animation(tmp_path / "a.gif")
    assert animation.durations == (0, 10, 70, 2500)
    assert animation.loop == loop
    write_animation(
        animation, tmp_path / "b.gif", durations=animation.durations, loop=animation.loop
    )
    again = open_animation(tmp_path / "b.gif")
    assert again.durations == animation.durations
    assert again.loop == loop
    with Image.open(tmp_path / "b.gif") as image:
        assert image.info.get("loop") == extension


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("loop", [0, 1, 4])
@pytest.mark.parametrize("alpha", [False, True])
def test_lossless_round_trip(tmp_path, suffix, loop, alpha):
    frames = _frames(4, alpha=alpha)
    durations = [40, 33, 0, 1000]
    path = tmp_path / f"a{suffix}"
    write_animation(iter(frames), path, durations=durations, loop=loop, quality=100)
    animation = open_animation(path)
    assert animation.loop == loop
    assert list(animation.durations) == durations
    _check(list(animation), [_rgba(frame) for frame in frames])
    if suffix == ".png":  # libpng, patched for APNG
        decoded = imagecodecs.apng_decode(path.read_bytes())
        assert np.array_equal(decoded, [_rgba(frame) for frame in frames])


def test_16_bits_in_an_apng(tmp_path):
    frames = [picture(4), picture(4)]
    frames[1] = Picture(frames[1].color[::-1].copy(), frames[1].alpha)
    write_animation(frames, tmp_path / "a.png", durations=[50, 50], loop=0)
    decoded = imagecodecs.apng_decode((tmp_path / "a.png").read_bytes())
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, [_rgba(frame) for frame in frames])


def test_frames_of_several_kinds(tmp_path):
    frames = [picture(channels, 8) for channels in (1, 2, 3, 4)]
    for suffix in (".png", ".webp", ".gif"):
        path = tmp_path / f"a{suffix}"
        write_animation(frames, path, durations=[50] * 4, loop=0, quality=100)
        animation = open_animation(path)
        assert animation.num_frames == 4
        if suffix == ".png":
            _check(list(animation), [_rgba(frame) for frame in frames])


def test_metadata_of_frames(tmp_path):
    frames = [
        Picture(frame.color, exif=exif(), icc_profile=b"x" * 16 + b"RGB " + b"x" * 200)
        for frame in _frames(2)
    ]
    for suffix in (".png", ".webp"):
        write_animation(frames, tmp_path / f"a{suffix}", durations=[50, 50], loop=0)
        for frame in open_animation(tmp_path / f"a{suffix}"):
            assert frame.icc_profile == frames[0].icc_profile
            kept = Image.Exif()
            kept.load(frame.exif)
            assert kept[0x010F] == "Maker"


@pytest.mark.parametrize("alpha", [False, True])
def test_gif_of_few_colours_is_exact(tmp_path, alpha):
    generator = np.random.default_rng(0)
    frames = []
    for _ in range(5):
        color = COLORS[generator.integers(0, 128, (HEIGHT, WIDTH))]
        opacity = (generator.random((HEIGHT, WIDTH)) < 0.7).astype(np.uint8) * 255
        frames.append(Picture(color, opacity if alpha else None))
    write_animation(iter(frames), tmp_path / "a.gif", durations=[50] * 5, loop=0)
    expected = [_rgba(frame) for frame in frames]
    _check(list(open_animation(tmp_path / "a.gif")), expected)
    # giflib, which is another reader, composes frames too; it shows no transparency.
    decoded = imagecodecs.gif_decode((tmp_path / "a.gif").read_bytes())
    if not alpha:
        assert np.array_equal(decoded[..., :3], [frame[..., :3] for frame in expected])


def test_gif_of_many_colours_is_close_and_does_not_flicker(tmp_path):
    still = np.asarray(rgb().resize((96, 72), Image.Resampling.BICUBIC))
    frames = []
    for index in range(6):
        color = still.copy()
        color[10:30, 5 + 8 * index : 25 + 8 * index] = 255 - color[10:30, 5:25]
        frames.append(Picture(color))
    write_animation(iter(frames), tmp_path / "a.gif", durations=[50] * 6, loop=0)
    result = [frame.color.astype(int) for frame in open_animation(tmp_path / "a.gif")]
    for got, frame in zip(result, frames, strict=True):
        assert np.abs(got - frame.color).mean() < 7
        # Dithering keeps averages.
        blocks = (got - frame.color.astype(int)).reshape(9, 8, 12, 8, 3).mean(axis=(1, 3))
        assert np.abs(blocks).mean() < 3
    for got in result[1:]:
        assert np.array_equal(got[40:], result[0][40:])  # nothing moves there


def test_unchanged_parts_are_not_written_again(tmp_path):
    still = noise(120, 160, 3, bits=8)
    moving = [still.copy() for _ in range(10)]
    for index, color in enumerate(moving):
        color[50:60, 10 * index : 10 * index + 10] = 0
    write_animation(
        [Picture(c) for c in moving[:1]] * 2, tmp_path / "2.gif", durations=[50] * 2, loop=0
    )
    write_animation([Picture(c) for c in moving], tmp_path / "10.gif", durations=[50] * 10, loop=0)
    assert (tmp_path / "10.gif").stat().st_size < 1.5 * (tmp_path / "2.gif").stat().st_size


def test_equal_frames_stay_frames(tmp_path):
    frames = _frames(1) * 3
    for suffix in (".gif", ".png"):
        path = tmp_path / f"a{suffix}"
        write_animation(frames, path, durations=[50, 60, 70], loop=0)
        assert open_animation(path).durations == (50, 60, 70)


def test_centiseconds_do_not_drift():
    durations = [33.367] * 300
    result = gif_writer.centiseconds(durations)
    assert abs(sum(result) - sum(durations) / 10) <= 1
    assert set(result) == {3, 4}
    assert gif_writer.centiseconds([0, 10, 0, 20]) == [0, 1, 0, 2]
    assert gif_writer.centiseconds([1e7]) == [65535]


def test_frames_are_not_kept(tmp_path):
    alive = weakref.WeakSet()
    most = 0

    def frames():
        nonlocal most
        for frame in _frames(30):
            mine = Picture(frame.color.copy())
            alive.add(mine.color.base if mine.color.base is not None else mine)
            most = max(most, len(alive))
            yield mine

    for suffix in (".gif", ".webp", ".png"):
        write_animation(frames(), tmp_path / f"a{suffix}", durations=[50] * 30, loop=0)
    assert most <= 4


def test_picture_before_an_apng_is_not_a_frame(tmp_path):
    """A PNG whose IDAT is no frame of the animation."""
    hidden, first, second = (noise(4, 5, 3, bits=8, seed=seed) for seed in range(3))
    parts, number = [], 0
    for values in (first, second):
        control = struct.pack(">IIIIIHHBB", number, 5, 4, 0, 0, 30, 1000, 0, 0)
        data = png(values, 8, 2)
        start = data.index(b"IDAT")
        length = struct.unpack(">I", data[start - 4 : start])[0]
        body = struct.pack(">I", number + 1) + data[start + 4 : start + 4 + length]
        parts += [png_chunk(b"fcTL", control), png_chunk(b"fdAT", body)]
        number += 2
    control = png_chunk(b"acTL", struct.pack(">II", 2, 3))
    (tmp_path / "a.png").write_bytes(png(hidden, 8, 2, before=control, after=b"".join(parts)))
    animation = open_animation(tmp_path / "a.png")
    assert animation.durations == (30, 30)
    assert animation.loop == 3
    frames = list(animation)
    assert np.array_equal(frames[0].color, first)
    assert np.array_equal(frames[1].color, second)


def test_what_is_no_animation(tmp_path):
    rgb().save(tmp_path / "a.gif")
    rgb().save(tmp_path / "a.png")
    rgb().save(tmp_path / "a.tif", save_all=True, append_images=[rgb(9)])
    rgb().save(tmp_path / "a.mpo", save_all=True, append_images=[rgb(9)])
    (tmp_path / "a.txt").write_text("hello")
    # One frame, behind a picture for programs that know no animations.
    rgb().save(tmp_path / "b.png", save_all=True, append_images=[rgb(9)], default_image=True)
    for name in ("a.gif", "a.png", "b.png", "a.tif", "a.mpo", "a.txt"):
        assert open_animation(tmp_path / name) is None
    with pytest.raises(PictureError, match="No such file"):
        open_animation(tmp_path / "none.gif")


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_truncated_animations(tmp_path, format):
    images = [Image.fromarray(noise(64, 64, 3, bits=8, seed=seed)) for seed in range(4)]
    buffer = io.BytesIO()
    images[0].save(buffer, format, save_all=True, append_images=images[1:], duration=50)
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    with pytest.raises(PictureError) as caught:
        open_animation(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        ("a.jpg", {}, PictureError, r"an animation needs a name that ends in one of .gif"),
        ("a.gif", {"durations": [1]}, PictureError, "more frames than the 1 durations"),
        ("a.gif", {"durations": [1, 2, 3]}, PictureError, "2 frames for 3 durations"),
        ("a.webp", {"durations": [1]}, PictureError, "more frames than the 1 durations"),
        ("a.webp", {"durations": [1, 2, 3]}, PictureError, "2 frames for 3 durations"),
        ("a.png", {"durations": [1, 2, 3]}, PictureError, "2 frames for 3 durations"),
        ("a.gif", {"durations": []}, ValueError, "durations: expected at least one"),
        ("a.gif", {"durations": [1, -2]}, ValueError, "none negative"),
        ("a.png", {"durations": [1, float("inf")]}, ValueError, "none negative or infinite"),
        ("a.gif", {"loop": -1}, ValueError, "loop: expected 0 .for ever. or more, got -1"),
        ("a.webp", {"quality": 0}, ValueError, "quality: expected 1 to 100"),
    ],
)
def test_bad_arguments_are_named(tmp_path, name, kwargs, error, message):
    with pytest.raises(error, match=message):
        write_animation(
            _frames(2), tmp_path / name, **({"durations": [50, 50], "loop": 0} | kwargs)
        )
    assert not list(tmp_path.iterdir())


def test_sizes_must_agree_and_fit(tmp_path):
    frames = [picture(3, 8), picture(3, 8, 5, 6)]
    for suffix in (".gif", ".webp", ".png"):
        with pytest.raises(PictureError, match=r"frame 1 is \(6, 5\), not \(13, 9\)"):
            write_animation(frames, tmp_path / f"a{suffix}", durations=[5, 5], loop=0)
    wide = Picture(np.zeros((1, 16_384, 3), np.uint8))
    with pytest.raises(PictureError, match="do not fit into WEBP"):
        write_animation([wide] * 2, tmp_path / "a.webp", durations=[5, 5], loop=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
@pytest.mark.parametrize("error", [RuntimeError("network"), KeyboardInterrupt()])
def test_what_frames_raise_gets_through_and_the_old_file_stays(tmp_path, suffix, error):
    def frames():
        yield picture(3, 8)
        raise error

    path = tmp_path / f"a{suffix}"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_animation(frames(), path, durations=[5, 5], loop=0)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(FileExistsError):
        write_animation(_frames(2), path, durations=[5, 5], loop=0, replace=False)


def test_lost_depth_is_said_once(tmp_path):
    with pytest.warns(PictureWarning, match="does not hold 16 bits") as caught:
        write_animation(_frames(3, bits=16), tmp_path / "a.gif", durations=[50] * 3, loop=0)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("suffix", "most"), [(".gif", 65_536), (".webp", 65_535), (".png", 2**31 - 1)]
)
def test_as_many_plays_as_a_format_can(tmp_path, suffix, most):
    path = tmp_path / f"a{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_animation(_frames(2), path, durations=[50, 50], loop=most)
    assert open_animation(path).loop == most
    with pytest.warns(PictureWarning, match=rf"plays at most {most} times .* not {most + 1} times"):
        write_animation(_frames(2), path, durations=[50, 50], loop=most + 1)
    assert open_animation(path).loop == most


def test_a_gif_of_most_plays_is_copied(tmp_path):
    frame = gif_frame(np.zeros((5, 6), np.uint8))
    other = gif_frame(np.ones((5, 6), np.uint8))
    (tmp_path / "a.gif").write_bytes(gif((6, 5), COLORS, [frame, other], 65_535))
    read = open_animation(tmp_path / "a.gif")
    write_animation(read, tmp_path / "b.gif", durations=read.durations, loop=read.loop)
    assert b"NETSCAPE2.0\x03\x01\xff\xff\0" in (tmp_path / "b.gif").read_bytes()


@pytest.mark.parametrize(
    ("milliseconds", "fraction"),
    [
        (0, (0, 1000)),
        (40, (40, 1000)),
        (65_535, (65_535, 1000)),
        (65_536, (6_554, 100)),
        (100_000, (10_000, 100)),
        (1_000_000, (10_000, 10)),
        (20_000_000, (20_000, 1)),
        (65_535_000, (65_535, 1)),
    ],
)
def test_long_delays_of_an_apng(tmp_path, milliseconds, fraction):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_animation(_frames(2), tmp_path / "a.png", durations=[milliseconds, 40], loop=100_000)
    data = (tmp_path / "a.png").read_bytes()
    place = data.index(b"fcTL") + 4 + 20
    assert struct.unpack(">HH", data[place : place + 4]) == fraction
    read = open_animation(tmp_path / "a.png")
    assert read.loop == 100_000
    assert read.durations == (pytest.approx(milliseconds, abs=5), 40)


@pytest.mark.parametrize(
    ("suffix", "longest"), [(".gif", 655_350), (".webp", 2**24 - 1), (".png", 65_535_000)]
)
def test_longer_frames_than_a_format_holds(tmp_path, suffix, longest):
    path = tmp_path / f"a{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_animation(_frames(3), path, durations=[longest, 50, longest], loop=0)
    assert open_animation(path).durations == (longest, 50, longest)
    with pytest.warns(PictureWarning, match="a frame of .* lasts at most .*not 1e.08 s") as caught:
        write_animation(_frames(3), path, durations=[1e11, 50, longest], loop=0)
    assert len(caught) == 1
    assert open_animation(path).durations == (longest, 50, longest)
