"""Broken files, decompression bombs, and sizes that formats do not hold."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from dasr_ops.models.pictures import (
    PictureError,
    check_output_size,
    formats,
    read_picture,
    write_picture,
)
from tests.picture_files import HEIGHT, WIDTH, noise, picture, png, rgb


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    rgb().resize((80, 80)).save(buffer, "JPEG")
    return buffer.getvalue()


def _png8() -> bytes:
    return png(noise(2, 2, 3, bits=8), 8, 2)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.png", None, "No such file"),
        ("text.png", b"hello", "not a picture"),
        ("empty.jpg", b"", "not a picture"),
        ("cut.jpg", _jpeg()[:-300], "truncated"),
        ("cut.png", _png8()[:50], "unrecognized data stream|truncated"),
        ("header.png", _png8()[:20], "Truncated File Read"),
        ("a.tif", b"II*\0\x08\0\0\0", "broken|not a picture"),
        ("b.tif", b"MM\0*" + b"\xff" * 60, "broken|not a picture"),
    ],
)
def test_broken_files_give_one_line(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(PictureError, match=message) as caught:
        read_picture(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(PictureError, match=r"directory|denied"):
        read_picture(tmp_path)


def test_decompression_bomb(tmp_path, monkeypatch):
    rgb().save(tmp_path / "a.png")
    monkeypatch.setattr(formats, "MAX_PIXELS", WIDTH * HEIGHT)
    limit = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # ours counts, not Pillow's
    assert read_picture(tmp_path / "a.png").size == (WIDTH, HEIGHT)
    assert Image.MAX_IMAGE_PIXELS == 10
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(formats, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(PictureError, match=r"too large: 14x10 pixels"):
        read_picture(tmp_path / "a.png")
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".avif", ".webp"])
def test_smallest_and_longest(tmp_path, suffix):
    for height, width in ((1, 1), (10, 8000), (8000, 10)):
        original = picture(3, 8, height, width)
        write_picture(original, tmp_path / f"a{suffix}")
        assert read_picture(tmp_path / f"a{suffix}").size == (width, height)


@pytest.mark.parametrize(
    ("size", "format", "message"),
    [
        ((16_384, 10), "WEBP", r"16384x10 pixels do not fit into WEBP \(16383 at most\)"),
        ((10, 65_501), "JPEG", r"10x65501 pixels do not fit into JPEG \(65500 at most\)"),
        ((65_537, 1), "AVIF", r"do not fit into AVIF"),
        ((65_536, 1), "GIF", r"do not fit into GIF"),
        ((40_000, 40_000), "BMP", r"do not fit into BMP \(4 GB at most\)"),
        ((0, 4), "PNG", r"empty: 0x4"),
    ],
)
def test_sizes_beyond_a_format(size, format, message):
    with pytest.raises(PictureError, match=message):
        check_output_size(size, format)


def test_sizes_within_a_format():
    for size, format in (
        ((16_383, 16_383), "WEBP"),
        ((65_500, 65_500), "JPEG"),
        ((65_535, 65_535), "GIF"),
        ((10**6, 10**6), "PNG"),
        ((10**6, 10**6), "TIFF"),
        ((37_000, 37_000), "BMP"),
    ):
        check_output_size(size, format)


def test_names_and_existing_files(tmp_path):
    with pytest.raises(PictureError, match=r"expected a name that ends in one of .png"):
        write_picture(picture(3), tmp_path / "a.gif")
    (tmp_path / "a.png").write_text("old")
    with pytest.raises(FileExistsError):
        write_picture(picture(3), tmp_path / "a.png", replace=False)
    assert (tmp_path / "a.png").read_text() == "old"
    write_picture(picture(3), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert read_picture(tmp_path / "a.png").bits == 16
