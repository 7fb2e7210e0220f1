"""Folders and lists of pictures, and every kind of picture that Pillow reads."""

import io
import itertools
import warnings

import numpy as np
import pytest
from PIL import Image

from dasr_ops.train.data import read_rgb
from dasr_ops.train.data.library import Library
from dasr_ops.train.data.pictures import read_patiently
from dasr_ops.train.data.sources import open_source

from .data_tools import damage, make_folder, pixels, save


def found(source, root):
    return [source.path(i).relative_to(root).as_posix() for i in range(len(source))]


def test_a_folder_is_searched_in_order_without_hidden_files(tmp_path):
    for name in ("b/x.PNG", "b.png", "a/deep/y.webp", "a.jpg", ".hidden.png", ".cache/z.png"):
        save(tmp_path / name, pixels(0, 8, 9))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert found(open_source(tmp_path), tmp_path) == [
        "a/deep/y.webp",
        "a.jpg",
        "b/x.PNG",
        "b.png",
    ]


def test_links_are_followed_but_not_in_circles(tmp_path):
    outside = make_folder(tmp_path / "elsewhere", 2)
    root = make_folder(tmp_path / "root", 1)
    (root / "link").symlink_to(outside)
    (root / "self").symlink_to(root)
    (root / "nowhere.png").symlink_to(tmp_path / "missing.png")
    (root / "ring.png").symlink_to(root / "ring.png")
    assert found(open_source(root), root) == ["00.png", "link/00.png", "link/01.png"]


def test_a_list_names_pictures_as_basicsr_does(tmp_path):
    make_folder(tmp_path / "set" / "sub", 3)
    save(tmp_path / "set" / "with space (1).png", pixels(1))
    absolute = save(tmp_path / "other" / "abs.png", pixels(2))
    text = (
        "\ufeff# pictures\r\n\n sub/00.png (40,50,3)\nsub/01.png (40, 50) 1\n"
        f"  \nsub/02.png\nwith space (1).png\n{absolute}\n"
    )
    listed = tmp_path / "set" / "meta_info.txt"
    listed.write_text(text, encoding="utf-8")
    names = ["sub/00.png", "sub/01.png", "sub/02.png", "with space (1).png"]
    expected = [*(tmp_path / "set" / name for name in names), absolute]
    source = open_source(listed)
    assert [source.path(i) for i in range(len(source))] == expected

    moved = tmp_path / "elsewhere.txt"
    moved.write_text(text, encoding="utf-8")
    source = open_source(moved, root=tmp_path / "set")
    assert [source.path(i) for i in range(len(source))] == expected


def test_a_single_picture_is_a_source(tmp_path):
    path = save(tmp_path / "one.png", pixels(0))
    assert [open_source(path).path(0)] == [path]


def test_what_holds_no_pictures_is_refused_with_its_name(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"data\.train: .*empty, where no file .*\.jpg .*\.png"):
        open_source(tmp_path / "empty", name="data.train")
    with pytest.raises(ValueError, match=r"got .*nowhere, which does not exist"):
        open_source(tmp_path / "nowhere")
    lists = tmp_path / "list.txt"
    lists.write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"list\.txt, which lists none"):
        open_source(lists)
    lists.write_text("a.png\nb.png\n")
    with pytest.raises(ValueError, match=r"none of the 2 pictures .*list\.txt lists .*/a\.png"):
        open_source(lists)
    with pytest.raises(ValueError, match=r"begin at .*nowhere, which is not a folder"):
        open_source(lists, root=tmp_path / "nowhere")
    lists.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="expected a text file with one picture to a line"):
        open_source(lists)


def test_the_library_joins_sources_and_skips_what_is_missing(tmp_path):
    first = make_folder(tmp_path / "a", 2)
    (tmp_path / "list.txt").write_text("a/01.png\na/gone.png\na/00.png\n")
    last = save(tmp_path / "last.png", pixels(9))
    sources = [open_source(p) for p in (first, tmp_path / "list.txt", last)]
    library = Library(sources, 16, cache_bytes=0)
    names = [library.path(i).name for i in range(len(library))]
    assert names == ["00.png", "01.png", "01.png", "gone.png", "00.png", "last.png"]
    seeds = [0, 1, 1, None, 0, 9]
    for index, seed in reversed(list(enumerate(seeds))):
        if seed is not None:
            np.testing.assert_array_equal(library.picture(index), pixels(seed))
    assert library.picture(3) is None
    assert library.skipped == {3: "No such file or directory"}


def test_pictures_are_kept_while_there_is_room(tmp_path, monkeypatch):
    library = Library([open_source(make_folder(tmp_path, 3))], 16, cache_bytes=2 * 40 * 50 * 3)
    opened = []
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a) or plain(*a, **k))
    for _ in range(3):
        for index in range(3):
            np.testing.assert_array_equal(library.picture(index), pixels(index))
    assert len(opened) == 2 + 3


def grey_pixels():
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def three(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def palette_picture():
    picture = Image.fromarray(grey_pixels(), "L").convert("P")
    picture.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
    grey = grey_pixels()
    return picture, np.stack([grey, 255 - grey, grey // 2], axis=2)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return io.BytesIO(buffer.getvalue())


def test_palettes_alpha_grey_and_black_and_white():
    picture, wanted = palette_picture()
    colour, grey = pixels(3, 16, 16), grey_pixels()
    faint = np.full((16, 16), 7, np.uint8)
    black = grey > 99
    cases = {
        "palette": (encoded(picture, "PNG"), wanted),
        "see-through palette": (encoded(picture, "PNG", transparency=bytes(range(256))), wanted),
        "grey": (encoded(Image.fromarray(grey), "PNG"), three(grey)),
        "grey with alpha": (
            encoded(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(faint)]), "PNG"),
            three(grey),
        ),
        "alpha": (encoded(Image.fromarray(np.dstack([colour, faint])), "PNG"), colour),
        "two levels": (encoded(Image.fromarray(black), "PNG"), three(black.astype(np.uint8) * 255)),
        "bmp": (encoded(Image.fromarray(colour), "BMP"), colour),
        "cmyk": (
            encoded(Image.fromarray(np.zeros((4, 4, 4), np.uint8), "CMYK"), "TIFF"),
            np.full((4, 4, 3), 255, np.uint8),
        ),
        "deep": (
            encoded(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"),
            three(grey),
        ),
    }
    for name, (file, result) in cases.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="CMYK")
            read = read_rgb(file)
        assert read.dtype == np.uint8, name
        np.testing.assert_array_equal(read, result, err_msg=name)


def test_the_first_picture_of_an_animation_is_taken():
    frames = [Image.fromarray(pixels(i, 20, 20)) for i in range(3)]
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_rgb(file), pixels(0, 20, 20), err_msg=kind)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # EXIF 2.32, table "Orientation": where row 0 and column 0 of the stored picture lie.
    stored = pixels(1, 5, 7)
    turns = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }
    file = encoded(Image.fromarray(stored), "PNG", exif=exif)
    np.testing.assert_array_equal(read_rgb(file), turns[orientation])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_matter():
    file = encoded(Image.fromarray(pixels(1)), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05junk")
    np.testing.assert_array_equal(read_rgb(file), pixels(1))


def test_what_cannot_be_read_is_an_oserror_in_one_line(tmp_path, monkeypatch):
    cut = save(tmp_path / "cut.png", pixels(0))
    damage(cut)
    jpeg = save(tmp_path / "cut.jpg", pixels(0, 200, 200))
    damage(jpeg)
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    for path, why in ((cut, "truncated"), (jpeg, "truncated"), (text, "not a picture")):
        with pytest.raises(OSError, match=why) as caught:
            read_rgb(path)
        assert "\n" not in str(caught.value)
    for bad in (empty, tmp_path, tmp_path / "missing.png"):
        with pytest.raises(OSError):
            read_rgb(bad)
    with pytest.raises(OSError, match="floating-point"):
        read_rgb(encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"))
    with pytest.raises(OSError, match="50x40 is below 41"):
        read_rgb(save(tmp_path / "small.png", pixels(0)), smallest=41)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(OSError, match="decompression bomb"):
        read_rgb(save(tmp_path / "huge.png", pixels(0)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_cut_of_a_file_is_an_oserror_or_a_picture():
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = encoded(Image.fromarray(pixels(0, 24, 24)), kind).getvalue()
        for length in range(0, len(whole), max(1, len(whole) // 60)):
            try:
                read_rgb(io.BytesIO(whole[:length]))
            except OSError:
                continue


def test_a_read_that_fails_for_now_is_tried_again(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    data = encoded(Image.fromarray(pixels(4)), "PNG").getvalue()

    def failing(times, number):
        tries = itertools.count()

        def opened():
            if next(tries) < times:
                raise OSError(number, "no luck")
            return io.BytesIO(data)

        return opened

    io_error, missing = 5, 2
    np.testing.assert_array_equal(read_patiently(failing(2, io_error)), pixels(4))
    with pytest.raises(OSError, match="no luck"):
        read_patiently(failing(3, io_error))
    with pytest.raises(FileNotFoundError):
        read_patiently(failing(1, missing))
