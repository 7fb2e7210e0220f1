"""Text, comments, IPTC data and resolution: kept, or named."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from dasr_ops.models.pictures import (
    Picture,
    PictureWarning,
    codecs,
    open_animation,
    read_picture,
    said_to,
    write_animation,
    write_picture,
)
from tests.picture_files import exif, noise, picture, png, png_chunk, rgb

TEXT = {
    "Author": "A. Nother",
    "parameters": "a fox, Steps: 20",
    "Title": "\u4e2d\u6587",
    "Comment": "na\u00efve " * 99,
}


def _told(action, *arguments, **options) -> list[str]:
    told: list[str] = []
    with said_to(told.append):
        action(*arguments, **options)
    return told


def _text_chunks() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", TEXT["Author"])
    info.add_text("parameters", TEXT["parameters"], zip=True)
    info.add_itxt("Title", TEXT["Title"], "zh", "\u6807\u9898", zip=True)
    info.add_itxt("Comment", TEXT["Comment"])
    return info


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("behind", [True, False])
def test_text_goes_from_png_to_png(tmp_path, bits, behind):
    buffer = io.BytesIO()
    rgb().save(buffer, "PNG", pnginfo=_text_chunks())
    data = buffer.getvalue()
    chunks = data[data.index(b"tEXt") - 4 : data.index(b"IDAT") - 4]
    around = (b"", chunks) if behind else (chunks, b"")
    (tmp_path / "a.png").write_bytes(png(noise(5, 4, 3, bits=bits), bits, 2, *around))
    assert not _told(lambda: write_picture(read_picture(tmp_path / "a.png"), tmp_path / "b.png"))
    assert read_picture(tmp_path / "b.png").text == TEXT
    with Image.open(tmp_path / "b.png") as image:
        assert image.text == TEXT
    told = _told(write_picture, read_picture(tmp_path / "a.png"), tmp_path / "b.jpg")
    names = "text entries Author, parameters, Title, Comment are not kept"
    assert f"JPEG: {names}" in told


def test_text_that_is_kept_elsewhere_is_no_text(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    info.add_text("date:create", "2020-01-01T00:00:00+00:00")
    info.add_text("exif:Orientation", "6")
    rgb().save(tmp_path / "a.png", pnginfo=info, exif=exif())
    read = read_picture(tmp_path / "a.png")
    assert read.text is None and read.xmp == b"<x:xmpmeta/>" and read.exif
    assert not _told(read_picture, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (b"tEXt", b"Raw profile type iptc\0\niptc\n 0\n", "IPTC data is not kept"),
        (b"tEXt", b"Raw profile type APP1\0\nx", "text entry Raw profile type APP1 is not kept"),
        (b"zTXt", b"A\0\0broken", "text entry A is not kept"),
        (b"zTXt", b"A\0\0" + zlib.compress(bytes(2 << 20)), "text entry A is not kept"),
        (b"zTXt", b"A\0\0" + zlib.compress(b"text")[:-5], "text entry A is not kept"),
        (b"iTXt", b"A\0\0\0\0\0\xff", "text entry A is not kept"),
        (b"iTXt", b"A\0", "text entry A is not kept"),
        (b"tEXt", b"A\0" + b"x" * (1 << 20), r"a text entry of 1048578 bytes is not kept"),
    ],
)
def test_text_that_is_not_kept_is_named(tmp_path, kind, data, message):
    # Pillow does not open files with broken text before the pixels.
    (tmp_path / "a.png").write_bytes(
        png(noise(5, 4, 3), 16, 2, after=png_chunk(b"tEXt", b"B\0b") + png_chunk(kind, data))
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = read_picture(tmp_path / "a.png")
    assert [str(one.message) for one in caught] == [message]
    assert read.text == {"B": "b"}


def test_equal_keywords_and_impossible_ones(tmp_path):
    double = png_chunk(b"tEXt", b"A\0one") + png_chunk(b"tEXt", b"A\0two")
    (tmp_path / "a.png").write_bytes(png(noise(5, 4, 3, bits=8), 8, 2, double))
    assert read_picture(tmp_path / "a.png").text == {"A": "one\ntwo"}
    text = {"k" * 80: "long", "": "none", "\u4e2d": "not latin", "B": "zero\0inside"}
    told = _told(write_picture, Picture(noise(5, 4), text=text), tmp_path / "b.png")
    assert len(told) == 3 and all(one.endswith("not kept") for one in told)
    with Image.open(tmp_path / "b.png") as image:
        assert image.text == {"B": "zeroinside"}


def test_text_of_an_animation(tmp_path):
    frames = [rgb(seed) for seed in (0, 30)]
    options = {"save_all": True, "append_images": frames[1:], "pnginfo": _text_chunks()}
    frames[0].save(tmp_path / "a.png", **options)
    animation = open_animation(tmp_path / "a.png")
    options = {"durations": animation.durations, "loop": 0}
    assert not _told(write_animation, animation, tmp_path / "b.png", **options)
    with Image.open(tmp_path / "b.png") as image:
        assert image.text == TEXT and image.n_frames == 2
    for suffix, name in ((".gif", "GIF"), (".webp", "WEBP")):
        told = _told(write_animation, animation, tmp_path / f"b{suffix}", **options)
        names = "text entries Author, parameters, Title, Comment are not kept"
        assert told == [f"animated {name}: {names}"]


def _iptc() -> bytes:
    """Photoshop's resources of a JPEG with a caption."""
    caption = b"\x1c\x02\x78\x00\x05Hello"
    return b"8BIM\x04\x04\0\0" + struct.pack(">I", len(caption)) + caption


def _jpeg(segment: bytes = b"", comment: bytes | None = None) -> bytes:
    buffer = io.BytesIO()
    rgb().save(buffer, "JPEG", **({} if comment is None else {"comment": comment}))
    data = buffer.getvalue()
    if not segment:
        return data
    return data[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


def _gif(comment: bytes, frames: int = 1) -> bytes:
    buffer = io.BytesIO()
    more = [rgb(30 * index) for index in range(1, frames)]
    rgb().save(buffer, "GIF", comment=comment, save_all=frames > 1, append_images=more)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "messages"),
    [
        (_jpeg(), []),
        (_jpeg(comment=b" \0"), []),
        (_jpeg(comment=b"by hand"), ["the comment is not kept"]),
        (_jpeg(b"Photoshop 3.0\0" + _iptc()), ["IPTC data is not kept"]),
        (_jpeg(b"Photoshop 3.0\0" + _iptc().replace(b"\x04\x04", b"\x04\x0a")), []),
        (_gif(b"by hand"), ["the comment is not kept"]),
        (_gif(b""), []),
    ],
)
def test_comments_and_iptc_are_named(tmp_path, data, messages):
    (tmp_path / "a.bin").write_bytes(data)
    assert _told(read_picture, tmp_path / "a.bin") == messages


def test_comment_of_an_animation_is_named(tmp_path):
    (tmp_path / "a.gif").write_bytes(_gif(b"by hand", 3))
    assert _told(open_animation, tmp_path / "a.gif") == ["the comment is not kept"]


@pytest.mark.parametrize(("data", "kept"), [(_iptc(), False), (b"8BIM\x04\x0a" + b"\0" * 6, True)])
@pytest.mark.parametrize("kind", [1, 7])
def test_iptc_within_resources_of_a_tiff_is_named(tmp_path, data, kept, kind):
    tags = [(34377, kind, len(data), data, True)]
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 9, 3), extratags=tags, metadata=None)
    messages = _told(read_picture, tmp_path / "a.tif")
    assert messages == ([] if kept else ["IPTC data is not kept"])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif", ".bmp"])
@pytest.mark.parametrize("data", [None, exif()])
def test_resolution_is_kept_by_every_format(tmp_path, suffix, data):
    original = Picture(picture(3, 8).color, exif=data, dpi=(300.0, 150.0))
    told = _told(write_picture, original, tmp_path / f"a{suffix}")
    lost = suffix == ".bmp" and data is not None
    assert told == ["BMP keeps neither EXIF nor a colour profile"] * lost
    read = read_picture(tmp_path / f"a{suffix}")
    assert read.dpi == pytest.approx(original.dpi, abs=0.02)  # whole pixels per metre
    with Image.open(tmp_path / f"a{suffix}") as image:
        if suffix in (".webp", ".avif"):
            told = image.getexif()
            assert (told[282], told[283], told[296]) == (300, 150, 2)
        else:
            assert image.info["dpi"] == pytest.approx(original.dpi, abs=0.02)
        if data and suffix != ".bmp":
            assert image.getexif()[0x010F] == "Maker"
            assert image.getexif().get_ifd(0x8769)[0x829A] == 0.25
            assert image.getexif().get_ifd(0x8825)[2] == (48.0, 8.0, 15.0)


def test_resolution_that_exif_tells_is_left_as_it_is(tmp_path):
    data = Image.Exif()
    data[282], data[283], data[296] = 100.0, 100.0, 3
    metres = data.tobytes()
    rgb().save(tmp_path / "a.webp", exif=metres)
    read = read_picture(tmp_path / "a.webp")
    assert read.dpi == pytest.approx((254, 254))
    write_picture(read, tmp_path / "b.webp")
    with Image.open(tmp_path / "b.webp") as image:
        assert image.getexif()[296] == 3


def test_resolution_beside_broken_exif_is_named(tmp_path):
    original = Picture(picture(3, 8).color, exif=b"Exif\0\0broken", dpi=(300.0, 300.0))
    assert any(
        "not kept" in one or "dropped" in one
        for one in _told(write_picture, original, tmp_path / "a.webp")
    )
    with pytest.warns(PictureWarning, match="EXIF data is broken"):
        assert read_picture(tmp_path / "a.webp").size == original.size


def test_resolution_of_an_animation(tmp_path):
    frames = [Picture(picture(3, 8).color, dpi=(300.0, 150.0))] * 2
    options = {"durations": [50, 50], "loop": 0}
    assert not _told(write_animation, frames, tmp_path / "a.webp", **options)
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.getexif()[282], image.getexif()[283]) == (300, 150)
    told = _told(write_animation, frames, tmp_path / "a.gif", **options)
    assert told == ["GIF keeps no metadata and no colour profile"]


@pytest.mark.parametrize("channels", [2, 4])
def test_opacity_in_a_bmp_is_placed_on_white(tmp_path, channels):
    original = picture(channels, 8)
    told = _told(write_picture, original, tmp_path / "a.bmp")
    assert told == ["BMP does not hold transparency: placed on white"]
    opacity = original.alpha.astype(float) / 255
    opacity = opacity if channels == 2 else opacity[..., None]
    expected = original.color * opacity + 255 * (1 - opacity)
    with Image.open(tmp_path / "a.bmp") as image:
        assert image.mode == ("L" if channels == 2 else "RGB")
        assert np.abs(np.asarray(image) - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("kind", ["pillow", "png", "tiff", "webp", "avif"])
def test_resolution_turns_with_the_picture(tmp_path, kind):
    data = Image.Exif()
    data[0x0112], data[282], data[283], data[296] = 6, 300.0, 150.0, 2
    path = tmp_path / "a.bin"
    values = noise(8, 9, 3)
    if kind == "pillow":
        rgb().save(path, "JPEG", exif=data, dpi=(300, 150))
    elif kind == "png":
        density = png_chunk(b"pHYs", struct.pack(">IIB", 11811, 5906, 1))
        block = png_chunk(b"eXIf", data.tobytes().removeprefix(b"Exif\0\0"))
        path.write_bytes(png(values, 16, 2, density + block))
    elif kind == "tiff":
        tags = [(274, 3, 1, 6, True)]
        options = {"resolution": (300, 150), "resolutionunit": "inch", "metadata": None}
        tifffile.imwrite(path, values, extratags=tags, **options)
    else:
        rgb().save(path, kind.upper(), exif=data)
    read = read_picture(path)
    assert read.size[0] < read.size[1]
    assert read.dpi == pytest.approx((150, 300), abs=0.02)


def test_resolution_turns_with_what_other_codecs_decode():
    opened = Image.new("RGB", (9, 8))
    opened.info |= {"exif": exif(6), "dpi": (300, 150)}
    values = noise(8, 9, 3, bits=10)
    read = codecs._picture(values, 10, opened, [])
    assert read.size == (8, 9) and read.dpi == (150, 300)
    assert np.array_equal(read.color, np.rot90(np.rint(values / 1023 * 65535), -1))


def test_broken_exif_is_noted_by_the_other_codecs():
    opened = Image.new("RGB", (9, 8))
    opened.info["exif"] = b"Exif\0\0broken"
    notes: list[str] = []
    read = codecs._picture(noise(8, 9, 3), 16, opened, notes)
    assert read.exif is None
    assert len(notes) == 1 and notes[0].startswith("EXIF data is broken and dropped: ")
