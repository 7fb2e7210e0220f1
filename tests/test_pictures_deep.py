"""Deep pictures: read in the depth that they have, compared with arrays that others wrote."""

from __future__ import annotations

import io
import struct
import sys
import warnings

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from dasr_ops.models.pictures import PictureError, PictureWarning, read_picture
from tests.picture_files import assert_same, exif, noise, png, png_chunk, rgb

HEIGHT, WIDTH = 21, 34


def _read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return read_picture(tmp_path / name)


@pytest.fixture(autouse=True)
def _nothing_is_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("error", PictureWarning)
        yield


@pytest.mark.parametrize("color_type", [0, 2, 4, 6])
def test_png_of_16_bits(tmp_path, color_type):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    values = noise(HEIGHT, WIDTH, channels)
    assert_same(_read(tmp_path, "a.png", png(values, 16, color_type)), values)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_another_encoder(tmp_path, channels):
    values = noise(HEIGHT, WIDTH, channels)
    data = imagecodecs.png_encode(values[..., 0] if channels == 1 else values)
    assert_same(_read(tmp_path, "a.png", data), values)


@pytest.mark.parametrize(
    ("bits", "color_type"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)]
)
def test_transparent_value_of_a_png(tmp_path, bits, color_type):
    channels = 1 if color_type == 0 else 3
    values = noise(HEIGHT, WIDTH, channels, bits=bits)
    value = values[3, 5]
    chunk = png_chunk(b"tRNS", value.astype(">u2").tobytes())
    picture = _read(tmp_path, "a.png", png(values, bits, color_type, before=chunk))
    scale = 255 // ((1 << bits) - 1) if bits < 8 else 1
    assert np.array_equal(picture.color.reshape(values.shape), values * scale)
    peak = 65535 if bits == 16 else 255
    assert np.array_equal(picture.alpha, np.where((values == value).all(axis=2), 0, peak))


def test_palette_with_opacity(tmp_path):
    values = noise(HEIGHT, WIDTH, 1, bits=2)
    colors, opacity = noise(4, 3, bits=8), np.array([0, 10, 200, 255], np.uint8)
    chunks = png_chunk(b"PLTE", colors.tobytes()) + png_chunk(b"tRNS", opacity.tobytes())
    picture = _read(tmp_path, "a.png", png(values, 2, 3, before=chunks))
    assert np.array_equal(picture.color, colors[values[..., 0]])
    assert np.array_equal(picture.alpha, opacity[values[..., 0]])


@pytest.mark.parametrize(
    ("how", "behind"), [("eXIf", False), ("eXIf", True), ("text", False), ("xmp", False)]
)
def test_orientation_of_a_deep_png(tmp_path, how, behind):
    values = noise(HEIGHT, WIDTH, 3)
    if how == "eXIf":
        chunk = png_chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"))
    elif how == "text":
        text = f"\nexif\n{len(exif(6)):8}\n{exif(6).hex()}\n"
        chunk = png_chunk(b"tEXt", b"Raw profile type exif\0" + text.encode())
    else:
        packet = b'<x:xmpmeta tiff:Orientation="6" dc:title="t"/>'
        chunk = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    data = png(values, 16, 2, *((b"", chunk) if behind else (chunk, b"")))
    picture = _read(tmp_path, "a.png", data)
    assert np.array_equal(picture.color, np.rot90(values, -1))
    if how == "xmp":
        assert picture.xmp == b'<x:xmpmeta dc:title="t"/>'
    else:
        kept = Image.Exif()
        kept.load(picture.exif)
        assert 0x0112 not in kept
        assert kept[0x010F] == "Maker"


def test_metadata_of_a_deep_png(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    rgb().save(buffer, "PNG", icc_profile=profile, dpi=(300, 150))
    data = buffer.getvalue()
    start, end = data.index(b"iCCP") - 4, data.index(b"IDAT") - 4
    picture = _read(tmp_path, "a.png", png(noise(5, 4, 3), 16, 2, before=data[start:end]))
    assert picture.icc_profile == profile
    assert picture.dpi == pytest.approx((300, 150), abs=0.02)  # whole pixels per metre


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (b"cICP", bytes([9, 16, 0, 1]), r"HDR \(PQ\) is treated as SDR"),
        (b"cICP", bytes([9, 18, 0, 1]), r"HDR \(HLG\) is treated as SDR"),
        (b"gAMA", struct.pack(">I", 100_000), "gamma of 1 is not applied, and not kept"),
        (b"gAMA", struct.pack(">I", 45_455), None),
        (b"sRGB", b"\0", None),
        (b"cICP", bytes([1, 13, 0, 1]), None),
    ],
)
def test_what_colours_mean(tmp_path, bits, kind, data, message):
    file = png(noise(5, 4, 3, bits=bits), bits, 2, before=png_chunk(kind, data))
    if message is None:
        _read(tmp_path, "a.png", file)  # warnings are errors here
    else:
        with pytest.warns(PictureWarning, match=message):
            _read(tmp_path, "a.png", file)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_damaged_data(tmp_path, kind, place):
    values = noise(64, 64, 3)
    if kind == "png":
        data = bytearray(imagecodecs.png_encode(values))
    else:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, values, photometric="rgb", compression="zlib")
        data = bytearray(buffer.getvalue())
    start = int(place * len(data))
    data[start : start + 64] = bytes(64)
    with pytest.raises(PictureError, match=r"truncated|broken"):
        _read(tmp_path, f"a.{kind}", bytes(data))


@pytest.mark.parametrize("cut", [40, 60, 300, -20])
def test_truncated_png(tmp_path, cut):
    with pytest.raises(PictureError) as caught:
        _read(tmp_path, "a.png", png(noise(64, 64, 3), 16, 2)[:cut])
    assert "\n" not in str(caught.value)


def test_bombs_are_refused_by_their_header(tmp_path):
    data = bytearray(png(noise(2, 2, 3), 16, 2))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = png_chunk(b"IHDR", bytes(data[16:29]))[-4:]
    with pytest.raises(PictureError, match="too large: 60000x60000 pixels"):
        _read(tmp_path, "a.png", bytes(data))
    path = tmp_path / "a.tif"
    for bits in (8, 16):
        values = noise(2, 2, 3, bits=bits)
        tifffile.imwrite(path, values, photometric="rgb")
        with tifffile.TiffFile(path, mode="r+b") as file:
            for tag in (256, 257):
                file.pages[0].tags[tag].overwrite(60_000, dtype="I")
        with pytest.raises(PictureError, match="too large: 60000x60000 pixels"):
            read_picture(path)


@pytest.mark.parametrize("bits", [9, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["jp2", "j2k"])
def test_jpeg_2000(tmp_path, bits, channels, suffix):
    values = noise(HEIGHT, WIDTH, channels, bits=bits)
    stored = values[..., 0] if channels == 1 else values
    data = imagecodecs.jpeg2k_encode(
        stored, level=0, reversible=True, bitspersample=bits, codecformat=suffix
    )
    picture = _read(tmp_path, f"a.{suffix}", data)
    expected = np.rint(stored.astype(float) * 65535 / ((1 << bits) - 1))
    assert np.array_equal(picture.color, expected)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [3, 4])
def test_avif(tmp_path, bits, channels):
    values = noise(HEIGHT, WIDTH, channels, bits=bits)
    data = imagecodecs.avif_encode(values, level=100, bitspersample=bits)
    picture = _read(tmp_path, "a.avif", data)
    expected = np.rint(values.astype(float) * 65535 / ((1 << bits) - 1))
    assert_same(picture, expected)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("container", [False, True])
def test_jpeg_xl(tmp_path, bits, channels, container):
    values = noise(HEIGHT, WIDTH, channels, bits=bits)
    stored = values[..., 0] if channels == 1 else values
    data = imagecodecs.jpegxl_encode(
        stored, lossless=True, bitspersample=bits, usecontainer=container
    )
    with pytest.warns(PictureWarning, match="profile of JPEG XL is not kept"):
        picture = _read(tmp_path, "a.jxl", data)
    peak = 255 if bits == 8 else 65535
    assert picture.bits == (8 if bits == 8 else 16)
    assert_same(picture, np.rint(values.astype(float) * peak / ((1 << bits) - 1)))


@pytest.mark.parametrize("data", [b"\xff\x0a", b"\xff\x0a" + b"\0" * 5, b"\xff\x0a" + b"\xff" * 40])
def test_broken_jpeg_xl(tmp_path, data):
    with pytest.raises(PictureError) as caught:
        _read(tmp_path, "a.jxl", data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("peak", [300, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_ppm(tmp_path, peak, channels):
    values = np.minimum(noise(HEIGHT, WIDTH, channels), peak)
    header = f"P{5 if channels == 1 else 6}\n# made by hand\n{WIDTH} {HEIGHT}\n{peak}\n".encode()
    picture = _read(tmp_path, "a.ppm", header + values.astype(">u2").tobytes())
    assert_same(picture, np.floor(values * 65535.0 / peak + 0.5))
    with pytest.raises(PictureError, match="truncated"):
        _read(tmp_path, "a.ppm", header + values.astype(">u2").tobytes()[:-1])


def test_heif_names_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = struct.pack(">I", 24) + b"ftypheic" + b"\0\0\0\0mif1heic" + b"\0" * 40
    with pytest.raises(PictureError, match="pip install pillow-heif"):
        _read(tmp_path, "a.heic", data)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jp2"])
def test_without_the_packages_a_warning_says_what_to_install(tmp_path, monkeypatch, name):
    values = noise(HEIGHT, WIDTH, 3) // 2  # Pillow's JPEG 2000 turns the brightest white to black
    if name == "a.png":
        (tmp_path / name).write_bytes(png(values, 16, 2))
    elif name == "a.tif":
        tifffile.imwrite(tmp_path / name, values, photometric="rgb")
    else:
        data = imagecodecs.jpeg2k_encode(values, level=0, reversible=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.warns(PictureWarning, match="16-bit colour is read as 8-bit; pip install imagec"):
        picture = read_picture(tmp_path / name)
    assert picture.bits == 8
    assert np.abs(picture.color - values / 257).max() <= 1  # Pillow drops the lower byte
