"""PatchDataset over a folder of photographs."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dasr_ops.train.data import PatchDataset, detail, read_rgb


def pixels(seed, height=40, width=50):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    (root / "deep" / "er").mkdir(parents=True)
    Image.fromarray(pixels(0)).save(root / "a.png")
    Image.fromarray(pixels(1, 32, 33)).save(root / "deep" / "b.PNG")
    Image.fromarray(pixels(2)).convert("L").save(root / "deep" / "er" / "c.webp", lossless=True)
    (root / "notes.txt").write_text("not a picture")
    return root


def find(patch, picture):
    """All (top, left, flipped) at which a [3, P, P] patch occurs in a uint8 picture."""
    size = patch.shape[1]
    plain = (patch * 255).round().numpy().astype(np.uint8).transpose(1, 2, 0)
    places = []
    for flipped, wanted in ((False, plain), (True, plain[:, ::-1])):
        for top in range(picture.shape[0] - size + 1):
            for left in range(picture.shape[1] - size + 1):
                if np.array_equal(picture[top : top + size, left : left + size], wanted):
                    places.append((top, left, flipped))
    return places


@pytest.mark.parametrize("cache_bytes", [2**31, 0, 40 * 50 * 3])
def test_patches_are_crops_of_the_pictures_mirrored_or_not(folder, cache_bytes):
    data = PatchDataset(folder, 32, length=24, cache_bytes=cache_bytes, seed=1)
    known = [read_rgb(path) for path in data.paths]
    assert len(known) == 3 and len(data) == 24
    used, mirrored = set(), set()
    for i in range(24):
        patch = data[i]
        assert patch.shape == (3, 32, 32) and patch.dtype == torch.float32
        assert patch.min() >= 0 and patch.max() <= 1
        hits = [(n, place) for n, picture in enumerate(known) for place in find(patch, picture)]
        assert len(hits) == 1
        used.add(hits[0][0])
        mirrored.add(hits[0][1][2])
    assert used == {0, 1, 2} and mirrored == {False, True}
    assert len(PatchDataset(folder, 32)) == 3


def test_without_flip_nothing_is_mirrored(folder):
    data = PatchDataset(folder, 32, length=12, flip=False)
    known = [read_rgb(path) for path in data.paths]
    assert not any(place[2] for i in range(12) for p in known for place in find(data[i], p))


def test_a_patch_is_a_function_of_seed_epoch_and_index(folder):
    def patches(seed, epoch):
        data = PatchDataset(folder, 32, length=6, seed=seed)
        data.set_epoch(epoch)
        return torch.stack([data[i] for i in (3, 0, 5)])

    base = patches(1, 2)
    assert torch.equal(base, patches(1, 2))
    for other in (patches(2, 2), patches(1, 3), patches(2, 1)):
        assert not torch.equal(base, other)
    assert not torch.equal(base[0], base[1])


def test_the_cache_changes_nothing(folder):
    kept = PatchDataset(folder, 32, length=8)
    read = PatchDataset(folder, 32, length=8, cache_bytes=0)
    assert all(torch.equal(kept[i], read[i]) for i in range(8))


def test_workers_that_live_on_see_the_next_epoch(folder):
    data = PatchDataset(folder, 32, length=4)
    loader = DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True)
    batches = []
    for epoch in (0, 1):
        data.set_epoch(epoch)
        batches += list(loader)
    data.set_epoch(1)
    assert torch.equal(batches[1], torch.stack([data[i] for i in range(4)]))
    assert not torch.equal(batches[0], batches[1])


def test_flat_crops_are_passed_over(tmp_path):
    picture = np.full((64, 640, 3), 128, np.uint8)
    picture[:, 160:] = pixels(0, 64, 480)
    Image.fromarray(picture).save(tmp_path / "half.png")
    amounts = {}
    for least in (0.0, 5.0):
        data = PatchDataset(tmp_path, 48, length=60, min_detail=least)
        crops = [data[i].mul(255).round().byte().permute(1, 2, 0).numpy() for i in range(60)]
        amounts[least] = [detail(crop) for crop in crops]
    assert min(amounts[0.0]) == 0 and min(amounts[5.0]) >= 5
    Image.fromarray(np.full((64, 64, 3), 9, np.uint8)).save(tmp_path / "half.png")
    assert PatchDataset(tmp_path, 48, min_detail=5.0)[0].unique().numel() == 1


def test_detail_by_hand():
    steps = np.zeros((4, 6, 3), np.uint8)
    steps[:, 3:] = 40
    assert detail(steps) == pytest.approx((0 + 40 / 5) / 2)


@pytest.mark.parametrize("cache_bytes", [2**31, 0])
def test_damaged_and_small_pictures_are_skipped_with_one_warning_each(folder, cache_bytes):
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    Image.fromarray(pixels(5, 31, 90)).save(folder / "small.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = PatchDataset(folder, 32, length=60, cache_bytes=cache_bytes)
        patches = [data[i] for i in range(60)]
        again = [data[i] for i in range(60)]
    skipping = [str(w.message) for w in caught if "skipping" in str(w.message)]
    names = ("cut.png", "empty.jpg", "small.png")
    assert sorted(path.name for path in data.skipped) == sorted(names)
    assert [sum(name in text for text in skipping) for name in names] == [1, 1, 1]
    assert "90x31 is below 32" in data.skipped[folder / "small.png"]
    assert all(torch.equal(a, b) for a, b in zip(patches, again, strict=True))


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="found 0 picture files"):
        PatchDataset(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    with (
        pytest.warns(UserWarning, match=r"skipping .*bad\.png"),
        pytest.raises(
            RuntimeError, match=r"none of the 1 pictures can be used \(.*bad\.png: not a"
        ),
    ):
        PatchDataset(tmp_path)[0]
    with pytest.raises(ValueError, match="root: expected a folder"):
        PatchDataset(tmp_path / "nowhere")


def test_reading_turns_everything_into_upright_8_bit_rgb(tmp_path):
    wide = np.array([[0, 128, 129], [257 * 7, 65535, 257 * 200]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(
        read_rgb(tmp_path / "deep.png")[..., 0], [[0, 0, 1], [7, 255, 200]]
    )
    clear = np.dstack([pixels(0, 4, 5), np.zeros((4, 5, 1), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "clear.png"), clear[..., :3])
    turned = Image.fromarray(pixels(1, 4, 6))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_rgb(tmp_path / "turned.png"), np.rot90(pixels(1, 4, 6), -1))
    with pytest.raises(OSError):
        read_rgb(tmp_path / "missing.png")


def test_bad_arguments_and_pickling(folder):
    for name, value in (("patch_size", 1), ("seed", -1), ("length", 0)):
        with pytest.raises(ValueError, match=f"{name}: expected .* got {value}"):
            PatchDataset(folder, **{"patch_size": 32, name: value})
    data = PatchDataset(folder, 32)
    with pytest.raises(IndexError, match=r"index: expected 0\.\.2, got 3"):
        data[3]
    with pytest.raises(ValueError, match="epoch"):
        data.set_epoch(-1)
    assert torch.equal(pickle.loads(pickle.dumps(data))[0], data[0])
