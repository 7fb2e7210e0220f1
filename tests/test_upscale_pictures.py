"""Pictures: every mode through the network and back, metadata, and files that are broken."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic, pictures
from dasr_ops.models.pictures import PictureError, PictureWarning, read_picture, write_picture
from dasr_ops.models.upscale import Upscaler

WIDTH, HEIGHT = 14, 10


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    torch.manual_seed(0)
    net_g = MSRResNetDynamic(num_feat=6, num_block=1, num_models=2, upscale=2)
    return Upscaler(DASR(net_g, Degradation_Predictor(nf=4, num_networks=2)))


def _rgb(seed: int = 0) -> Image.Image:
    # Smooth, so that JPEG and palettes stay close.
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = (x * 12 + 20, y * 20 + 10, 200 - x * 5 - y * 6 + seed)
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def _alpha() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(((x + y) * 10).astype(np.uint8))


def _with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(_alpha())
    return image


def _palette_with_transparency() -> Image.Image:
    image = _rgb().quantize(8)
    image.info["transparency"] = 2
    return image


def _deep() -> Image.Image:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray((x * 4000 + y * 100 + 7).astype(np.uint16))


MODES = {
    "L": (lambda: _rgb().convert("L"), "L"),
    "LA": (lambda: _with_alpha(_rgb().convert("L")), "LA"),
    "RGB": (_rgb, "RGB"),
    "RGBA": (lambda: _with_alpha(_rgb()), "RGBA"),
    "P": (lambda: _rgb().quantize(8), "RGB"),
    "P with transparency": (_palette_with_transparency, "RGBA"),
    "1": (lambda: _rgb().convert("1"), "L"),
    "CMYK": (lambda: _rgb().convert("CMYK"), "RGB"),
    "YCbCr": (lambda: _rgb().convert("YCbCr"), "RGB"),
    "HSV": (lambda: _rgb().convert("HSV"), "RGB"),
    "LAB": (lambda: Image.new("LAB", (5, 4), (140, 20, 200)), "RGB"),
    "RGBX": (lambda: _rgb().convert("RGBX"), "RGB"),
    "RGBa": (lambda: _with_alpha(_rgb()).convert("RGBa"), "RGBA"),
    "La": (lambda: _with_alpha(_rgb().convert("L")).convert("La"), "LA"),
    "PA": (lambda: _with_alpha(_rgb()).convert("PA"), "RGBA"),
    "I;16": (_deep, "I;16"),
    "I;16B": (lambda: Image.frombytes("I;16B", (3, 2), bytes(range(12))), "I;16"),
    "I": (lambda: _deep().convert("I"), "I;16"),
}


@pytest.mark.filterwarnings("ignore:CMYK without")
@pytest.mark.parametrize("name", MODES)
def test_every_mode(upscaler, name):
    build, mode = MODES[name]
    image = build()
    result = upscaler(image)
    image = image.convert("LA") if name == "La" else image
    assert result.mode == mode
    assert result.size == (image.width * 2, image.height * 2)
    color = result
    if mode in ("LA", "RGBA"):
        opacity = (image if mode == "LA" else image.convert("RGBA")).getchannel("A")
        expected = np.asarray(opacity.resize(result.size, Image.Resampling.LANCZOS))
        assert np.array_equal(np.asarray(result.getchannel("A")), expected)
        color = result.convert(mode.rstrip("A"))
    # The same values as a tensor, without any of the handling of modes.
    if mode == "I;16":
        grey = np.asarray(image.convert("I")).astype(np.float64) / 65535
        values = np.stack([grey] * 3)
    elif mode in ("L", "LA"):
        values = np.stack([np.asarray(image.convert("L")) / 255] * 3)
    else:
        rgb = image.convert("RGB" if mode == "RGB" else "RGBA").convert("RGB")
        values = np.moveaxis(np.asarray(rgb) / 255, 2, 0)
    lr = torch.from_numpy(values)[None].float()
    expected = upscaler(lr)[0].double().numpy()
    peak = 65535 if mode == "I;16" else 255
    got = np.asarray(color).astype(np.float64)
    expected = expected.mean(0) if got.ndim == 2 else np.moveaxis(expected, 0, 2)
    # Half a step of rounding, and float32 on the way.
    assert np.abs(got - expected * peak).max() <= 0.5 + peak * 1e-6


def test_deep_grey_is_not_squeezed_through_8_bits(upscaler):
    values = np.asarray(upscaler(_deep()))
    assert values.dtype == np.uint16
    assert len(np.unique(values % 257)) > 50


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (3, 3)), "mode F cannot be read: floating-point"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), r"grey values 70000..70000"),
        (Image.new("RGB", (0, 3)), "empty: 0x3 pixels"),
    ],
)
def test_modes_without_a_meaning(upscaler, image, message):
    with pytest.raises(PictureError, match=message):
        upscaler(image)


def test_cmyk_profile_is_not_kept_for_rgb(upscaler):
    image = _rgb().convert("CMYK")
    image.info["icc_profile"] = b"not a profile"
    with pytest.warns(PictureWarning, match="CMYK without a usable colour profile"):
        result = upscaler(image)
    assert "icc_profile" not in result.info


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    exif[0x8769] = {0xA002: WIDTH, 0xA003: HEIGHT, 0x829A: 0.25}
    return exif


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", ".avif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_metadata_is_kept_and_orientation_applied(tmp_path, upscaler, suffix, orientation):
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    profile = _profile()
    _rgb().save(source, exif=_exif(orientation).tobytes(), icc_profile=profile, quality=100)
    upright = read_picture(source)
    size = (WIDTH, HEIGHT) if orientation == 1 else (HEIGHT, WIDTH)
    assert upright.size == size
    expected = np.asarray(_rgb()) if orientation == 1 else np.rot90(np.asarray(_rgb()), -1)
    assert np.abs(np.asarray(upright).astype(int) - expected).mean() < 6
    write_picture(upscaler(upright), target)
    with Image.open(target) as written:
        assert written.size == (2 * size[0], 2 * size[1])
        assert written.info["icc_profile"] == profile
        exif = written.getexif()
        assert exif.get(0x0112, 1) == 1
        assert exif[0x010F] == "Maker"
        directory = exif.get_ifd(0x8769)
        assert directory[0x829A] == 0.25
        assert 0xA002 not in directory
        written.load()


@pytest.mark.parametrize("target", ["out.png", "out.jpg", "out.tiff"])
def test_layout_of_a_tiff_is_not_taken_for_metadata(tmp_path, target):
    source = tmp_path / "in.tif"
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    _rgb().save(source, exif=exif, compression="tiff_lzw")
    large = read_picture(source).resize((300, 200))
    write_picture(large, tmp_path / target)
    with Image.open(tmp_path / target) as written:
        assert written.size == (300, 200)
        assert np.asarray(written).shape == (200, 300, 3)
        assert written.getexif()[0x010F] == "Maker"


def _png(color_type: int, depth: int, channels: int) -> bytes:
    """A PNG that Pillow cannot write: 2x2 pixels of ``depth`` bits per channel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    row = b"\0" + b"\x12\x34" * (2 * channels)
    header = struct.pack(">IIBBBBB", 2, 2, depth, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _tiff_16_bit_rgb() -> bytes:
    pixels = struct.pack("<12H", *range(0, 60000, 5000))
    entries = [
        (256, 3, 1, 2),
        (257, 3, 1, 2),
        (258, 3, 3, 8 + 2 + 9 * 12 + 4),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8 + 2 + 9 * 12 + 4 + 6),
        (277, 3, 1, 3),
        (278, 3, 1, 2),
        (279, 4, 1, len(pixels)),
    ]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0" * 4
    return b"II*\0\x08\0\0\0" + directory + struct.pack("<3H", 16, 16, 16) + pixels


@pytest.mark.parametrize(
    ("name", "data", "depth"),
    [
        ("rgb.png", _png(2, 16, 3), 16),
        ("rgba.png", _png(6, 16, 4), 16),
        ("la.png", _png(4, 16, 2), 16),
        ("rgb.tif", _tiff_16_bit_rgb(), 16),
    ],
)
def test_16_bit_colour_is_said_to_be_squeezed(tmp_path, name, data, depth):
    (tmp_path / name).write_bytes(data)
    with pytest.warns(PictureWarning, match=f"^{depth}-bit colour is read as 8-bit$"):
        image = read_picture(tmp_path / name)
    assert image.size == (2, 2)


def test_nothing_is_said_where_nothing_is_lost(tmp_path):
    (tmp_path / "grey.png").write_bytes(_png(0, 16, 1))
    _rgb().save(tmp_path / "rgb.png")
    _rgb().save(tmp_path / "rgb.tif")
    _rgb().quantize(8).save(tmp_path / "palette.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "grey.png").mode in ("I;16", "I")
        for name in ("rgb.png", "rgb.tif", "palette.png"):
            read_picture(tmp_path / name)


def test_only_the_first_picture_of_an_animation(tmp_path):
    _rgb().save(tmp_path / "a.gif", save_all=True, append_images=[_rgb(50)])
    with pytest.warns(PictureWarning, match="only the first of 2 pictures is read"):
        assert read_picture(tmp_path / "a.gif").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("build", "target", "mode", "message"),
    [
        (lambda: _with_alpha(_rgb()), "a.jpg", "RGB", "JPEG does not hold transparency"),
        (lambda: _with_alpha(_rgb().convert("L")), "a.jpg", "L", "JPEG does not hold transparency"),
        (_deep, "a.jpg", "L", "JPEG does not hold 16-bit grey"),
        (_deep, "a.webp", "RGB", "WEBP does not hold 16-bit grey"),
        (_deep, "a.bmp", "L", "BMP does not hold 16-bit grey"),
    ],
)
def test_what_a_format_cannot_hold_is_said(tmp_path, build, target, mode, message):
    with pytest.warns(PictureWarning, match=message):
        write_picture(build(), tmp_path / target)
    with Image.open(tmp_path / target) as written:
        assert written.mode == mode


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".avif"])
@pytest.mark.parametrize("name", ["L", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.filterwarnings("ignore::dasr_ops.models.pictures.PictureWarning")
def test_every_result_fits_every_format(tmp_path, suffix, name):
    image = MODES[name][0]()
    write_picture(image, tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as written:
        written.load()
        assert written.size == image.size
        if suffix in (".png", ".tif"):
            assert written.mode == name
            assert np.array_equal(np.asarray(written), np.asarray(image))


def test_profile_of_grey_is_not_put_on_rgb(tmp_path):
    image = MODES["L"][0]()
    image.info["icc_profile"] = b"grey profile"
    write_picture(image, tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as written:
        assert not written.info.get("icc_profile")


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    _rgb().resize((80, 80)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.png", None, "No such file"),
        ("text.png", b"hello", "not a picture"),
        ("empty.jpg", b"", "not a picture"),
        ("cut.jpg", _jpeg()[:-300], "truncated"),
        ("cut.png", _png(2, 8, 3)[:50], "unrecognized data stream"),
        ("header.png", _png(2, 8, 3)[:20], "Truncated File Read"),
    ],
)
def test_broken_files_give_one_line(tmp_path, name, data, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(PictureError, match=message) as caught:
        read_picture(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_decompression_bomb(tmp_path, monkeypatch):
    _rgb().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_picture(tmp_path / "a.png")  # Pillow warns up to twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 2 - 1)
    with pytest.raises(PictureError, match=r"too large: .*decompression bomb"):
        read_picture(tmp_path / "a.png")


def test_sizes_beyond_a_format_are_refused(tmp_path):
    with pytest.raises(PictureError, match="20000x10 pixels do not fit into WEBP"):
        write_picture(Image.new("RGB", (20000, 10)), tmp_path / "a.webp")
    with pytest.raises(PictureError, match=r"expected a name that ends in one of .png"):
        write_picture(_rgb(), tmp_path / "a.gif")
    pictures.check_output_size((10**6, 10**6), "PNG")
    assert not list(tmp_path.iterdir())


def test_exif_that_cannot_be_written_is_dropped_with_a_word(tmp_path):
    image = _rgb()
    image.info["exif"] = b"Exif\0\0" + b"x" * 70_000
    with pytest.warns(PictureWarning, match="EXIF data is too long for JPEG and dropped"):
        write_picture(image, tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as written:
        assert "exif" not in written.info


def test_broken_exif_is_dropped_with_a_word(tmp_path):
    _rgb().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        image = read_picture(tmp_path / "a.jpg")
        write_picture(image, tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as written:
        written.load()
        assert written.size == (WIDTH, HEIGHT)


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    target.write_text("old")

    def save(self, path, **_):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space left"):
        write_picture(_rgb(), target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
