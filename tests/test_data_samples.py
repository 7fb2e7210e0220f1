"""What sample n is: a function of the seed, of n and of the pictures."""

import pickle

import numpy as np
import pytest

from dasr_ops.train.data.crops import cut, mirror, quarter_turn
from dasr_ops.train.data.library import NoPictureError
from dasr_ops.train.data.pictures import detail

from .data_tools import PATCH, SCALE, SOURCE, damage, make_config, make_folder, make_samples, save
from .data_tools import pixels as random_pixels


def array(sample):
    return sample.source.permute(1, 2, 0).numpy()


def equal(a, b):
    return np.array_equal(array(a), array(b)) and a[1:] == b[1:]


def transforms(picture):
    for flipped in (False, True):
        for turns in range(4):
            yield (flipped, turns), np.rot90(picture[:, ::-1] if flipped else picture, turns)


def places(square, picture):
    """Return all (top, left) at which a square occurs in a picture."""
    size = len(square)
    rows, columns = picture.shape[0] - size + 1, picture.shape[1] - size + 1
    begins = (picture[: max(0, rows), : max(0, columns)] == square[0, 0]).all(axis=2)
    return [
        (top, left)
        for top, left in np.argwhere(begins).tolist()
        if np.array_equal(picture[top : top + size, left : left + size], square)
    ]


def which(sample, count):
    """Return which of the random pictures a sample shows."""
    return next(
        i
        for i in range(count)
        if any(places(array(sample), turned) for _, turned in transforms(random_pixels(i)))
    )


@pytest.mark.parametrize("size", [(40, 50), (24, 24), (20, 50), (50, 17), (16, 16)])
@pytest.mark.parametrize("rotate", [False, True])
def test_sources_are_squares_of_pictures_and_patches_lie_inside_them(tmp_path, size, rotate):
    picture = random_pixels(0, *size)
    save(tmp_path / "a.png", picture)
    samples = make_samples(make_config(tmp_path, rotate=rotate))
    margin = 2 * SOURCE
    # Whether a pixel is one of the picture or one of the reflection around it.
    real = np.pad(np.ones(size, np.uint8), margin)
    around = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    both = dict(
        zip(
            (key for key, _ in transforms(real)),
            zip((t for _, t in transforms(real)), (t for _, t in transforms(around)), strict=True),
            strict=True,
        )
    )
    seen = set()
    for number in range(24):
        sample = samples[number]
        assert sample.source.shape == (3, SOURCE, SOURCE)
        top, left = (c * SCALE for c in sample.corner)
        assert 0 <= top <= SOURCE - PATCH and 0 <= left <= SOURCE - PATCH
        inside = False
        for key, (mask, turned) in both.items():
            for row, column in places(array(sample), turned):
                patch = mask[row + top : row + top + PATCH, column + left : column + left + PATCH]
                whole = mask[row : row + SOURCE, column : column + SOURCE]
                if patch.all() and (min(size) < SOURCE or whole.all()):
                    inside = True
                    seen.add(key)
        assert inside
    if min(size) >= SOURCE:
        assert {flipped for flipped, _ in seen} == {False, True}
        assert {turns for _, turns in seen} == ({0, 1, 2, 3} if rotate else {0})


def test_reflection_is_numpys():
    picture = random_pixels(0, 9, 5)
    around = np.pad(picture, ((30, 30), (30, 30), (0, 0)), mode="reflect")
    for top, left in ((0, 0), (-7, 1), (3, -30), (-30, 20), (8, 4)):
        wanted = around[30 + top : 42 + top, 30 + left : 42 + left]
        if wanted.shape[:2] == (12, 12):
            np.testing.assert_array_equal(cut(picture, top, left, 12), wanted)


@pytest.mark.parametrize("change", [mirror, quarter_turn])
def test_a_corner_goes_with_its_square(change):
    square, span = random_pixels(0, 10, 10), 3  # in units of 2 pixels: patches of 4
    for corner in ((0, 0), (3, 1), (2, 3)):
        top, left = (2 * c for c in corner)
        patch, _ = change(square[top : top + 4, left : left + 4], (0, 0), 0)
        turned, (row, column) = change(square, corner, span)
        found = turned[2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
        np.testing.assert_array_equal(found, patch)


def test_each_picture_comes_once_in_an_epoch_in_ever_new_orders(tmp_path):
    for value in range(7):
        save(tmp_path / f"{value}.png", np.full((30, 30, 3), value, np.uint8))
    orders = []
    for seed in (5, 6):
        samples = make_samples(make_config(tmp_path, seed=seed))
        shown = [int(samples[n].source.max()) for n in range(7 * 6)]
        orders += [tuple(shown[i : i + 7]) for i in range(0, len(shown), 7)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(set(orders)) == len(orders)


def test_a_sample_depends_on_its_number_alone(tmp_path):
    config = make_config(make_folder(tmp_path, 5), cache_bytes=20_000)
    forward, other = make_samples(config), pickle.loads(pickle.dumps(make_samples(config)))
    known = [forward[n] for n in range(23)]
    for n in np.random.default_rng(0).permutation(23).tolist():
        assert equal(other[n], known[n])
    far = 10**12 + 7
    assert equal(forward[far], make_samples(config)[far])
    reseeded = make_samples(make_config(tmp_path, seed=6))
    assert sum(equal(reseeded[n], known[n]) for n in range(23)) == 0


def test_draws_cover_their_ranges(tmp_path):
    samples = make_samples(make_config(make_folder(tmp_path, 3), rotate=True))
    drawn = [samples[n] for n in range(600)]
    corners = {sample.corner for sample in drawn}
    assert corners == {(i, j) for i in range(5) for j in range(5)}
    seeds = np.array([sample.seed for sample in drawn], dtype=np.float64) / 2**62
    assert len(set(seeds)) == 600 and seeds.min() >= 0 and seeds.max() < 1
    # Mean of 600 uniform draws: 5 standard deviations.
    assert abs(seeds.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 600)


def test_a_bad_picture_changes_no_other_sample(tmp_path):
    config = make_config(make_folder(tmp_path, 6))
    before = make_samples(config)
    whole = [before[n] for n in range(60)]
    bad = {2, 4}
    shown = [which(sample, 6) for sample in whole]
    damage(tmp_path / "02.png")
    save(tmp_path / "04.png", random_pixels(4, 15, 99))
    after, backward = make_samples(config), make_samples(config)
    replaced = [after[n] for n in range(60)]
    assert all(equal(backward[n], replaced[n]) for n in reversed(range(60)))
    for n in range(60):
        assert equal(whole[n], replaced[n]) == (shown[n] not in bad)
        assert (whole[n].seed, whole[n].corner[0]) == (replaced[n].seed, replaced[n].corner[0])
    assert after.library.skipped == {2: after.library.skipped[2], 4: "99x15 is below 16"}
    assert "truncated" in after.library.skipped[2]
    used = {which(s, 6) for s, before in zip(replaced, shown, strict=True) if before in bad}
    assert used == {0, 1, 3, 5}


def test_the_one_good_picture_among_many_bad_ones_is_found(tmp_path):
    for i in range(120):
        (tmp_path / f"{i:03}.png").write_bytes(b"nothing")
    save(tmp_path / "077.png", random_pixels(3))
    samples = make_samples(make_config(tmp_path))
    assert all(samples[n].source.float().std() > 50 for n in range(4))
    assert len(samples.library.skipped) > 32  # the draws found none, so all were gone through
    (tmp_path / "077.png").unlink()
    with pytest.raises(NoPictureError, match=r"none of the 119 .*000\.png: not a .*; .*001"):
        make_samples(make_config(tmp_path))[0]


def test_flat_patches_are_passed_over(tmp_path):
    picture = np.full((64, 640, 3), 128, np.uint8)
    picture[:, 160:] = random_pixels(0, 64, 480)
    save(tmp_path / "half.png", picture)
    amounts = {}
    for least in (0.0, 5.0):
        samples = make_samples(make_config(tmp_path, min_detail=least, rotate=True))
        amounts[least] = []
        for n in range(60):
            sample = samples[n]
            top, left = (c * SCALE for c in sample.corner)
            patch = array(sample)[top : top + PATCH, left : left + PATCH]
            amounts[least].append(detail(patch))
    assert min(amounts[0.0]) == 0 and min(amounts[5.0]) >= 5
