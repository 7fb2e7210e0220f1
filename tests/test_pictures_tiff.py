"""TIFF of every layout through tifffile: values, orientation, metadata, and what is broken."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from dasr_ops.models.pictures import PictureError, PictureWarning, read_picture
from tests.picture_files import assert_same, noise

HEIGHT, WIDTH = 21, 34


@pytest.fixture(autouse=True)
def _nothing_is_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("error", PictureWarning)
        yield


TIFF_KINDS = {
    "plain": {},
    "tiles": {"tile": (16, 16)},
    "strips": {"rowsperstrip": 4},
    "planar": {"planarconfig": "separate"},
    "planar tiles": {"planarconfig": "separate", "tile": (16, 16)},
    "lzw": {"compression": "lzw"},
    "lzw predictor": {"compression": "lzw", "predictor": True},
    "deflate predictor": {"compression": "zlib", "predictor": True, "rowsperstrip": 5},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "lzma": {"compression": "lzma"},
    "big-endian": {"byteorder": ">"},
    "big-endian lzw": {"byteorder": ">", "compression": "lzw", "predictor": True},
    "bigtiff": {"bigtiff": True},
}


def _tiff(tmp_path, values, **options):
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None, **options)
    return read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", TIFF_KINDS)
def test_tiff_of_16_bits(tmp_path, kind, channels):
    values = noise(HEIGHT, WIDTH, channels)
    options = dict(TIFF_KINDS[kind])
    if channels == 1:
        options.pop("planarconfig", None)
        stored = values[..., 0]
    else:
        planar = options.get("planarconfig") == "separate"
        stored = np.moveaxis(values, 2, 0) if planar else values
    options["photometric"] = "minisblack" if channels == 1 else "rgb"
    assert_same(_tiff(tmp_path, stored, **options), values)


@pytest.mark.parametrize("channels", [2, 4])
def test_tiff_with_opacity(tmp_path, channels):
    values = noise(HEIGHT, WIDTH, channels)
    options = {"photometric": "rgb" if channels == 4 else "minisblack", "planarconfig": "contig"}
    assert_same(_tiff(tmp_path, values, extrasamples=["unassalpha"], **options), values)


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_with_colours_multiplied_by_opacity(tmp_path, bits):
    peak = (1 << bits) - 1
    straight = noise(HEIGHT, WIDTH, 3, bits=bits)
    alpha = noise(HEIGHT, WIDTH, 1, bits=bits, seed=1)
    alpha[:2] = 0
    stored = np.rint(straight.astype(float) * alpha / peak).astype(straight.dtype)
    picture = _tiff(
        tmp_path,
        np.concatenate([stored, alpha], axis=2),
        photometric="rgb",
        extrasamples=["assocalpha"],
    )
    assert np.array_equal(picture.alpha, alpha[..., 0])
    # What is stored was rounded, which opacity magnifies.
    error = np.abs(picture.color.astype(float) - straight)
    tolerance = 0.5 * peak / np.maximum(alpha, 1).astype(float) + (0.5 if bits == 16 else 1.5)
    assert np.all((error <= tolerance) | (alpha == 0))


def test_channels_without_meaning_are_named(tmp_path):
    values = noise(HEIGHT, WIDTH, 5)
    with pytest.warns(PictureWarning, match="2 extra channels without meaning dropped"):
        picture = _tiff(
            tmp_path, values, photometric="rgb", extrasamples=["unspecified", "unspecified"]
        )
    assert np.array_equal(picture.color, values[..., :3])
    assert picture.alpha is None


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_opacity_behind_a_channel_without_meaning(tmp_path, bits, kind, planar):
    values = noise(HEIGHT, WIDTH, 5, bits=bits)
    peak = (1 << bits) - 1
    values[..., 4] |= 1  # visible everywhere
    expected = values[..., :3]
    if kind == "assocalpha":
        values[..., :3] = np.minimum(values[..., :3], values[..., 4:])
        expected = np.rint(values[..., :3] * (peak / values[..., 4:].astype(float)))
    stored = np.moveaxis(values, 2, 0) if planar == "separate" else values
    options = {"photometric": "rgb", "planarconfig": planar, "extrasamples": ["unspecified", kind]}
    with pytest.warns(PictureWarning, match="1 extra channel without meaning dropped"):
        picture = _tiff(tmp_path, stored, **options)
    assert picture.color.dtype == values.dtype
    assert np.array_equal(picture.alpha, values[..., 4])
    assert np.abs(picture.color.astype(float) - expected).max() <= (kind == "assocalpha")


def test_white_is_zero(tmp_path):
    values = noise(HEIGHT, WIDTH)
    picture = _tiff(tmp_path, values, photometric="miniswhite")
    assert np.array_equal(picture.color, 65535 - values)


def test_palette_of_a_deep_tiff(tmp_path):
    indices = noise(HEIGHT, WIDTH)
    colors = noise(3, 65536, seed=2)
    picture = _tiff(tmp_path, indices, photometric="palette", colormap=colors)
    assert np.array_equal(picture.color, colors.T[indices])


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits_are_scaled_to_16(tmp_path, bits):
    values = noise(HEIGHT, WIDTH, bits=bits)
    try:
        picture = _tiff(tmp_path, values, bitspersample=bits, photometric="minisblack")
    except NotImplementedError:
        pytest.skip("this imagecodecs does not write packed bits")
    expected = np.rint(values.astype(float) * 65535 / ((1 << bits) - 1))
    assert np.array_equal(picture.color, expected)


def test_cmyk_of_16_bits(tmp_path):
    values = noise(HEIGHT, WIDTH, 4)
    with pytest.warns(PictureWarning, match="CMYK without a usable colour profile"):
        picture = _tiff(tmp_path, values, photometric="separated")
    ink, black = 65535.0 - values[..., :3], 65535.0 - values[..., 3:]
    assert np.array_equal(picture.color, np.rint(ink * black / 65535))
    assert picture.icc_profile is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "zstd"])  # the latter is unknown to Pillow
def test_orientation_and_metadata_of_a_deep_tiff(tmp_path, orientation, compression):
    values = noise(HEIGHT, WIDTH, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = [(274, 3, 1, orientation, True), (271, 2, 6, "Maker", True), (700, 1, 4, b"<x/>", True)]
    picture = _tiff(
        tmp_path,
        values,
        photometric="rgb",
        compression=compression,
        iccprofile=profile,
        extratags=tags,
        resolution=(300, 300),
        resolutionunit="inch",
        software=False,
    )
    turned = {
        1: values,
        2: values[:, ::-1],
        3: np.rot90(values, 2),
        4: values[::-1],
        5: np.transpose(values, (1, 0, 2)),
        6: np.rot90(values, -1),
        7: np.transpose(values[::-1, ::-1], (1, 0, 2)),
        8: np.rot90(values, 1),
    }
    assert np.array_equal(picture.color, turned[orientation])
    assert picture.icc_profile == profile
    assert picture.xmp == b"<x/>"
    assert picture.dpi == (300, 300)
    kept = Image.Exif()
    kept.load(picture.exif)
    assert kept[271] == "Maker"
    assert 274 not in kept and 256 not in kept


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((5, 4, 3), np.float32), {"photometric": "rgb"}, "floating-point values have no"),
        (np.zeros((5, 4), np.float32), {"photometric": "minisblack"}, "floating-point values"),
        (np.full((5, 4), -3, np.int16), {"photometric": "minisblack"}, "-3..-3 are not 16-bit"),
        (np.full((5, 4), 70000, np.uint32), {"photometric": "minisblack"}, "70000..70000 are not"),
        (noise(5, 4, 3), {"photometric": "cielab"}, "16-bit CIELAB cannot be read"),
        (noise(5, 4), {"photometric": "cfa"}, "raw file"),
    ],
)
def test_tiff_without_a_meaning(tmp_path, values, options, message):
    with pytest.raises(PictureError, match=message):
        _tiff(tmp_path, values, **options)


def test_further_pages_are_named(tmp_path):
    pages = noise(2, HEIGHT, WIDTH, 3)
    with pytest.warns(PictureWarning, match="only the first of 2 pictures is read"):
        picture = _tiff(tmp_path, pages, photometric="rgb")
    assert np.array_equal(picture.color, pages[0])


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("bits", [8, 16])
def test_truncated_tiff(tmp_path, capfd, compression, tile, bits):
    values = noise(64, 64, 3, bits=bits)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="rgb", compression=compression, tile=tile)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(PictureError, match=r"truncated|broken"):
        read_picture(path)
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""  # nor does a library print anything
