"""Writing pictures, and ordinary, broken and impossible files."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from dasr_ops.models import pictures
from dasr_ops.models.pictures import (
    FORMATS,
    Picture,
    PictureWarning,
    png_writer,
    read_picture,
    tiff_writer,
    write_picture,
    writing,
)
from tests.picture_files import HEIGHT, WIDTH, exif, noise, picture, rgb, with_alpha

QUIET = "ignore::dasr_ops.models.pictures.PictureWarning"


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _interleaved(picture: Picture) -> np.ndarray:
    height, width = picture.color.shape[:2]
    values = picture.color.reshape(height, width, -1)
    if picture.alpha is not None:
        values = np.concatenate([values, picture.alpha[..., None]], axis=2)
    return values


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(9, 13), (1, 1), (1, 40), (40, 1)])
def test_png_is_what_others_read(tmp_path, monkeypatch, channels, bits, size):
    monkeypatch.setattr(png_writer, "_PIECE", 200)  # many pieces
    original = picture(channels, bits, *size)
    write_picture(original, tmp_path / "a.png")
    read = imagecodecs.png_decode((tmp_path / "a.png").read_bytes())
    assert read.dtype == original.color.dtype
    assert np.array_equal(read.reshape(*size, channels), _interleaved(original))
    if bits == 8:
        with Image.open(tmp_path / "a.png") as image:
            assert np.array_equal(
                np.asarray(image).reshape(*size, channels), read.reshape(*size, channels)
            )


def test_paeth_is_the_formula_of_the_specification():
    rows, pixel = noise(9, 30, bits=8) // 40 * 37, 3  # small steps and ties as well as large ones
    padded = np.pad(rows.astype(int), ((1, 0), (pixel, 0)))
    a, b, c = padded[1:, :-pixel], padded[:-1, pixel:], padded[:-1, :-pixel]
    pa, pb, pc = (abs(a + b - c - other) for other in (a, b, c))
    best = np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))
    expected = np.pad((rows - best) % 256, ((0, 0), (1, 0)), constant_values=4).astype(np.uint8)
    assert png_writer.paeth(rows, pixel, 0) == expected.tobytes()
    assert png_writer.paeth(rows, pixel, 1) == expected[1:].tobytes()


def test_png_of_a_flat_picture_is_small(tmp_path):
    tile = noise(8, 8, 3, bits=8)
    write_picture(Picture(np.tile(tile, (50, 50, 1))), tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    Image.fromarray(np.tile(tile, (50, 50, 1))).save(tmp_path / "b.png")
    assert size < 2 * (tmp_path / "b.png").stat().st_size + 5000


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("big", [False, True])
def test_tiff_is_what_others_read(tmp_path, monkeypatch, channels, bits, big):
    monkeypatch.setattr(tiff_writer, "_STRIP", 100)
    if big:
        monkeypatch.setattr(tiff_writer, "_LARGEST_CLASSIC", 100)
    original = picture(channels, bits)
    write_picture(original, tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff == big
        read = file.pages[0].asarray()
        assert len(file.pages[0].dataoffsets) > 1
    assert read.dtype == original.color.dtype
    assert np.array_equal(read.reshape(9, 13, channels), _interleaved(original))
    if bits == 8:
        with Image.open(tmp_path / "a.tif") as image:
            assert image.mode == ["L", "LA", "RGB", "RGBA"][channels - 1]
            assert np.array_equal(np.asarray(image), read)
    else:  # libtiff
        again = imagecodecs.tiff_decode((tmp_path / "a.tif").read_bytes())
        assert np.array_equal(again.reshape(9, 13, channels), _interleaved(original))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_round_trip_of_16_bits(tmp_path, suffix, channels):
    original = picture(channels)
    write_picture(original, tmp_path / f"a{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_picture(tmp_path / f"a{suffix}")
    assert np.array_equal(read.color, original.color)
    assert (read.alpha is None) == (original.alpha is None)
    assert read.alpha is None or np.array_equal(read.alpha, original.alpha)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.filterwarnings(QUIET)
def test_metadata_is_written(tmp_path, suffix, bits):
    base = picture(3, bits)
    original = Picture(base.color, None, exif(), _profile(), b"<x:xmpmeta/>", (300.0, 150.0))
    write_picture(original, tmp_path / f"a{suffix}")
    if suffix != ".tif" or bits == 8:
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.info["icc_profile"] == original.icc_profile
            data = image.getexif()
            assert data[0x010F] == "Maker"
            assert data.get_ifd(0x8769)[0x829A] == 0.25
            assert data.get_ifd(0x8825)[2] == (48.0, 8.0, 15.0)
            image.load()
    read = read_picture(tmp_path / f"a{suffix}")
    assert read.icc_profile == original.icc_profile
    assert read.xmp == original.xmp
    assert read.dpi == pytest.approx(original.dpi, abs=0.02)
    kept = Image.Exif()
    kept.load(read.exif)
    assert kept[0x010F] == "Maker"
    assert kept.get_ifd(0x8769)[0x829A] == 0.25
    assert kept.get_ifd(0x8825)[2] == (48.0, 8.0, 15.0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", ".avif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_metadata_is_kept_and_orientation_applied(tmp_path, suffix, orientation):
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    profile = _profile()
    rgb().save(source, exif=exif(orientation), icc_profile=profile, quality=100)
    upright = read_picture(source)
    size = (WIDTH, HEIGHT) if orientation == 1 else (HEIGHT, WIDTH)
    assert upright.size == size
    expected = np.asarray(rgb()) if orientation == 1 else np.rot90(np.asarray(rgb()), -1)
    assert np.abs(upright.color.astype(int) - expected).mean() < 6
    write_picture(upright, target)
    with Image.open(target) as written:
        assert written.size == size
        assert written.info["icc_profile"] == profile
        data = written.getexif()
        assert data.get(0x0112, 1) == 1
        assert data[0x010F] == "Maker"
        directory = data.get_ifd(0x8769)
        assert directory[0x829A] == 0.25
        assert 0xA002 not in directory
        written.load()


@pytest.mark.parametrize("target", ["out.png", "out.jpg", "out.tiff"])
def test_layout_of_a_tiff_is_not_taken_for_metadata(tmp_path, target):
    data = Image.Exif()
    data[0x010F] = "Maker"
    rgb().save(tmp_path / "in.tif", exif=data, compression="tiff_lzw")
    small = read_picture(tmp_path / "in.tif")
    large = Picture(np.asarray(rgb().resize((300, 200))), exif=small.exif)
    write_picture(large, tmp_path / target)
    with Image.open(tmp_path / target) as written:
        assert written.size == (300, 200)
        assert np.asarray(written).shape == (200, 300, 3)
        assert written.getexif()[0x010F] == "Maker"


def test_nothing_is_said_where_nothing_is_lost(tmp_path):
    rgb().save(tmp_path / "rgb.png")
    rgb().save(tmp_path / "rgb.tif")
    rgb().quantize(8).save(tmp_path / "palette.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("rgb.png", "rgb.tif", "palette.png"):
            read_picture(tmp_path / name)


def test_only_the_first_picture_of_an_animation(tmp_path):
    rgb().save(tmp_path / "a.gif", save_all=True, append_images=[rgb(50)])
    with pytest.warns(PictureWarning, match="only the first of 2 pictures is read"):
        assert read_picture(tmp_path / "a.gif").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("channels", "bits", "target", "mode", "message"),
    [
        (4, 8, "a.jpg", "RGB", "JPEG does not hold transparency"),
        (2, 8, "a.jpg", "L", "JPEG does not hold transparency"),
        (1, 16, "a.jpg", "L", "JPEG does not hold 16-bit grey"),
        (3, 16, "a.jpg", "RGB", "JPEG does not hold 16-bit colour"),
        (1, 16, "a.webp", "RGB", "WEBP does not hold 16-bit grey"),
        (4, 16, "a.webp", "RGBA", "WEBP does not hold 16-bit colour"),
        (1, 16, "a.bmp", "L", "BMP does not hold 16-bit grey"),
        (3, 16, "a.avif", "RGB", "AVIF does not hold 16-bit colour"),
    ],
)
def test_what_a_format_cannot_hold_is_said(tmp_path, channels, bits, target, mode, message):
    with pytest.warns(PictureWarning, match=message):
        write_picture(picture(channels, bits), tmp_path / target)
    with Image.open(tmp_path / target) as written:
        assert written.mode == mode


def test_depth_is_reduced_by_rounding_and_opacity_on_white(tmp_path):
    original = picture(4)
    with pytest.warns(PictureWarning):
        fitted = writing.fit(original, "JPEG")
    opacity = original.alpha[..., None] / 65535
    expected = original.color * opacity + 65535 * (1 - opacity)
    assert fitted.color.dtype == np.uint8
    assert np.abs(fitted.color - expected / 257).max() <= 0.5 + 0.5 / 257


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.filterwarnings(QUIET)
def test_every_picture_fits_every_format(tmp_path, suffix, channels, bits):
    original = picture(channels, bits)
    write_picture(original, tmp_path / f"a{suffix}")
    read = read_picture(tmp_path / f"a{suffix}")
    assert read.size == original.size
    if suffix in (".png", ".tif", ".tiff"):
        assert np.array_equal(_interleaved(read), _interleaved(original))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_quality(tmp_path, suffix, channels):
    image = rgb().resize((160, 120), Image.Resampling.BICUBIC)
    original = Picture.from_pil(image if channels == 3 else image.convert("L"))
    sizes, errors = [], []
    for quality in (10, 60, None, 100):
        write_picture(original, tmp_path / f"a{suffix}", quality=quality)
        sizes.append((tmp_path / f"a{suffix}").stat().st_size)
        read = np.asarray(Image.open(tmp_path / f"a{suffix}").convert(image.mode)).astype(int)
        expected = original.color if channels == 3 else np.stack([original.color] * 3, axis=2)
        errors.append(np.abs(read - expected).mean())
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors[0] > max(errors[2:])
    assert errors[2] < 2
    if suffix == ".webp":
        assert errors[3] == 0


def test_jpeg_equals_that_of_pillow(tmp_path, monkeypatch):
    for channels in (1, 3):
        original = picture(channels, 8, 40, 50)
        write_picture(original, tmp_path / "a.jpg")
        monkeypatch.setattr(writing, "_write_jpeg", lambda *_: False)
        write_picture(original, tmp_path / "b.jpg")
        monkeypatch.undo()
        with Image.open(tmp_path / "a.jpg") as first, Image.open(tmp_path / "b.jpg") as second:
            assert first.mode == second.mode
            assert first.info["jfif_version"] == second.info["jfif_version"]
            difference = np.asarray(first).astype(int) - np.asarray(second)
            # The same tables; forward transforms of two builds of libjpeg-turbo may round apart.
            assert first.quantization == second.quantization
            assert np.abs(difference).max() <= 4


@pytest.mark.parametrize(
    ("quality", "error"), [(0, ValueError), (101, ValueError), (9.5, TypeError), (True, TypeError)]
)
def test_bad_quality_is_named(tmp_path, quality, error):
    with pytest.raises(error, match="write_picture: quality: expected"):
        write_picture(picture(3), tmp_path / "a.jpg", quality=quality)
    with pytest.raises(TypeError, match="picture: expected a Picture, got Image"):
        write_picture(rgb(), tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_profile_of_grey_is_not_put_on_rgb(tmp_path):
    grey = picture(1, 8)
    write_picture(Picture(grey.color, icc_profile=b"grey profile"), tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as written:
        assert not written.info.get("icc_profile")
    write_picture(Picture(grey.color, icc_profile=_profile()), tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as written:
        assert written.info["icc_profile"] == _profile()


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp", ".png", ".avif"])
def test_exif_that_cannot_be_kept_is_dropped_with_a_word(tmp_path, suffix):
    base = picture(3, 8)
    for data in (b"Exif\0\0" + b"x" * 70_000, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            write_picture(Picture(base.color, exif=data), tmp_path / f"a{suffix}")
        if suffix == ".jpg" and len(data) > 65_533:
            assert "EXIF data is too long for JPEG and dropped" in str(caught[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert read_picture(tmp_path / f"a{suffix}").size == base.size


def test_broken_exif_is_dropped_with_a_word(tmp_path):
    rgb().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        write_picture(read_picture(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as written:
        written.load()
        assert written.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", FORMATS)
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, suffix):
    target = tmp_path / f"a{suffix}"
    target.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def half(path: Path, *_: object, **__: object) -> None:
        Path(path).write_text("half")
        fail()

    monkeypatch.setattr(Image.Image, "save", lambda self, path, **_: half(path))
    monkeypatch.setattr(png_writer, "write_chunk", fail)
    monkeypatch.setattr(writing, "write_tiff", half)
    monkeypatch.setattr(writing, "_write_jpeg", lambda _, path, __: half(path))
    with pytest.raises(OSError, match="No space left"):
        write_picture(picture(3, 8), target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".bmp"])
def test_full_disk_is_an_oserror(tmp_path, suffix, monkeypatch):
    def device(path, *, replace=True):
        import contextlib

        @contextlib.contextmanager
        def full():
            yield Path("/dev/full")

        return full()

    monkeypatch.setattr(writing, "atomic_path", device)
    with pytest.raises(OSError, match="No space left"):
        write_picture(picture(3, 8, 200, 200), tmp_path / f"a{suffix}")


def test_transparency_survives_a_palette_and_a_gif(tmp_path):
    with_alpha(rgb()).save(tmp_path / "a.gif")
    read = read_picture(tmp_path / "a.gif")
    assert read.alpha is not None
    assert set(np.unique(read.alpha)) == {0, 255}


def test_the_package_offers_what_it_names():
    for name in pictures.__all__:
        assert hasattr(pictures, name)
