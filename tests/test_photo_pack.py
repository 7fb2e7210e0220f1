"""Packing patches of photographs: made-up pictures, no network."""

import hashlib
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dasr_ops.models.files import TEMPORARY_PREFIX
from dasr_ops.train import photos
from dasr_ops.train.data import PatchDataset, detail, open_source
from dasr_ops.train.photo_pack import choose_patches, pack, parse_bytes


def photo(name, package="fake"):
    return photos.Photo(name, "train", package, f"{name}.png", "0" * 64, f"By {name}", "CC0-1.0", 1)


def noise(seed, height, width, amount=256):
    rng = np.random.default_rng(seed)
    return rng.integers(0, amount, (height, width, 3), dtype=np.uint8)


def save(root, name, pixels):
    root.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(root / f"{name}.png")
    return photo(name)


@pytest.fixture
def pictures(tmp_path):
    root = tmp_path / "train"
    return root, [
        save(root, "busy", noise(0, 100, 140)),
        save(root, "calm", noise(1, 96, 64, amount=20)),
        save(root, "flat", np.full((80, 80, 3), 77, np.uint8)),
        save(root, "tiny", noise(2, 31, 200)),
    ]


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_chosen_patches_do_not_overlap_and_are_in_order_of_their_detail():
    ramp = np.linspace(0, 1, 200)[:, None, None]  # more detail further down
    picture = (noise(3, 200, 170) * ramp).astype(np.uint8)
    patches = choose_patches(picture, 32, 2.0)
    covered = np.zeros(picture.shape[:2], int)
    for patch in patches:
        square = picture[patch.top : patch.top + 32, patch.left : patch.left + 32]
        assert square.shape == (32, 32, 3)
        assert patch.detail == pytest.approx(detail(square), rel=1e-5) and patch.detail >= 2
        covered[patch.top : patch.top + 32, patch.left : patch.left + 32] += 1
    assert covered.max() == 1 and len(patches) > 10
    details = [patch.detail for patch in patches]
    assert details == sorted(details, reverse=True)
    everywhere = [
        detail(picture[top : top + 32, left : left + 32])
        for top in range(0, 169, 4)
        for left in range(0, 139, 4)
    ]
    assert details[0] == pytest.approx(max(everywhere), rel=1e-5)
    assert choose_patches(picture[:31], 32, 0) == []
    assert choose_patches(picture, 32, 500.0) == []
    assert len(choose_patches(np.zeros((32, 32, 3), np.uint8), 32, 0)) == 1


def test_patches_are_the_pixels_of_the_pictures_and_the_list_tells_which(tmp_path, pictures):
    root, sources = pictures
    dest = tmp_path / "packs" / "small"
    done = pack(root, dest, sources, size=32, attribution="# Where from\n")
    found = files(dest)
    notes = json.loads(found.pop("patches.json"))
    assert found.pop("ATTRIBUTION.md") == b"# Where from\n"
    assert set(found) == set(notes["patches"])
    assert done.patches == len(found) == done.offered
    assert done.pictures == 2 and done.left_out == ["flat", "tiny"]
    assert done.bytes == sum(path.stat().st_size for path in dest.iterdir())
    assert notes["pictures"]["busy"] == {
        "author": "By busy",
        "licence": "CC0-1.0",
        "package": "fake",
        "sha256": "0" * 64,
    }
    for name, entry in notes["patches"].items():
        assert hashlib.sha256(found[name]).hexdigest() == entry["sha256"]
        whole = np.asarray(Image.open(root / f"{entry['picture']}.png"))
        top, left = entry["top"], entry["left"]
        square = whole[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found[name]))), square)
        assert entry["detail"] == pytest.approx(detail(square), abs=1e-3)


def test_the_limit_holds_and_cuts_all_pictures_alike(tmp_path, pictures):
    root, sources = pictures
    whole = pack(root, tmp_path / "whole", sources, size=32)
    limit = whole.bytes // 3
    done = pack(root, tmp_path / "part", sources, size=32, limit=limit)
    assert sum(path.stat().st_size for path in (tmp_path / "part").iterdir()) == done.bytes <= limit
    assert done.bytes > limit - 6000 and 2 <= done.patches < whole.patches == done.offered
    notes = json.loads((tmp_path / "part" / "patches.json").read_text())
    counts = {name: 0 for name in ("busy", "calm")}
    for entry in notes["patches"].values():
        counts[entry["picture"]] += 1
    assert abs(counts["busy"] - counts["calm"]) <= 1
    everything = files(tmp_path / "whole")
    assert all(everything[name] == files(tmp_path / "part")[name] for name in notes["patches"])


def test_the_same_pictures_give_the_same_bytes(tmp_path, pictures):
    root, sources = pictures
    pack(root, tmp_path / "a", sources, size=32, limit=60_000)
    pack(root, tmp_path / "b", sources, size=32, limit=60_000)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_jpeg_is_close_and_smaller(tmp_path, pictures):
    root, _ = pictures
    ramp = np.add.outer(np.arange(64), np.arange(64))[..., None]
    smooth = (np.clip(ramp, 0, 255) + noise(4, 64, 64, amount=4)).astype(np.uint8)
    source = save(root, "smooth", smooth)
    exact = pack(root, tmp_path / "exact", [source], size=64, min_detail=0)
    done = pack(root, tmp_path / "jpeg", [source], size=64, min_detail=0, quality=95)
    assert done.bytes < exact.bytes
    ours = np.asarray(Image.open(tmp_path / "jpeg" / "smooth-0000-0000.jpg")).astype(int)
    assert np.abs(ours - smooth).mean() < 2


def test_training_reads_a_pack(tmp_path, pictures):
    root, sources = pictures
    done = pack(root, tmp_path / "pack", sources, size=32)
    assert len(open_source(tmp_path / "pack")) == done.patches
    assert PatchDataset(tmp_path / "pack", 32)[0].shape == (3, 32, 32)


def test_a_pack_is_replaced_whole_and_nothing_else_is(tmp_path, pictures, monkeypatch):
    root, sources = pictures
    dest = tmp_path / "pack"
    dest.mkdir()
    pack(root, dest, sources, size=32)
    before = files(dest)
    real = os.replace

    def fail(source, target):
        if str(target) == str(dest) and ".tmp" in str(source):
            raise OSError("disk full")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        pack(root, dest, sources[:1], size=48)
    monkeypatch.undo()
    assert files(dest) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pack", "train"]
    pack(root, dest, sources[:1], size=48)
    assert all(name.startswith(("busy", "patches")) for name in files(dest))
    other = tmp_path / "holiday"
    shutil.copytree(root, other)
    with pytest.raises(ValueError, match="dest: expected a new folder or an older pack"):
        pack(root, other, sources, size=32)


def test_what_a_killed_run_moved_aside_is_put_back(tmp_path, pictures):
    root, sources = pictures
    dest, aside = tmp_path / "pack", tmp_path / f"{TEMPORARY_PREFIX}pack.old"
    pack(root, dest, sources, size=32)
    before = files(dest)
    dest.rename(aside)  # killed between the two renames
    with pytest.raises(ValueError, match="not one patch"):
        pack(root, dest, sources, size=32, limit=1)
    assert files(dest) == before
    dest.rename(aside)
    pack(root, dest, sources[:1], size=48)
    assert all(name.startswith(("busy", "patches")) for name in files(dest))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pack", "train"]


def test_a_pack_without_a_patch_is_an_error_and_leaves_nothing(tmp_path, pictures):
    root, sources = pictures
    for options in ({"limit": 500}, {"min_detail": 400.0}, {"size": 512}):
        with pytest.raises(ValueError, match="not one patch of"):
            pack(root, tmp_path / "pack", sources, **({"size": 32} | options))
    bad = [("size", 8), ("quality", 0), ("quality", 101), ("min_detail", float("nan"))]
    for name, value in bad:
        with pytest.raises(ValueError, match=f"{name}: expected .* got {value}"):
            pack(root, tmp_path / "pack", sources, **{name: value})
    assert [p.name for p in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("30MB", 30_000_000),
        ("30 mb", 30_000_000),
        ("1.5MiB", 3 * 2**19),
        ("2k", 2000),
        ("500000", 500_000),
        ("7 B", 7),
    ],
)
def test_numbers_of_bytes(text, amount):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "0", "3TB", "3i", "inf", "1e6"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ValueError, match="expected a number of bytes"):
        parse_bytes(text)
