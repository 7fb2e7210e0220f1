"""Validation: what it understands, what it leaves out, that it disturbs nothing."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import metrics as their_metrics
from torch import nn

from dasr_ops.train.config import NetworkConfig, TrainConfig, ValidationConfig
from dasr_ops.train.watch import Validation
from dasr_ops.train.watch import samples as samples_module
from dasr_ops.train.watch.pairs import find_pictures, read_rgb, read_size, shared_size
from dasr_ops.train.watch.samples import DegradedSet, PairSet, open_folder, read_vector

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(path, size=(96, 88), seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (12, 11, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)
    image.save(path)
    return path


def config(pictures, upscale=4, **options):
    return TrainConfig(
        network=NetworkConfig(upscale=upscale),
        validation=ValidationConfig(pictures=pictures, **options),
    )


def enlarge(lr, scale=4):
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", antialias=True)


def pixels(path):
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def luma(rgb):
    return (rgb / 255) @ np.array([65.481, 128.553, 24.966]) + 16


def test_pairs_are_scored_as_files_would_be(tmp_path):
    for i, size in enumerate([(96, 88), (83, 101)]):  # the second is no multiple of 4
        gt = picture(tmp_path / "gt" / "deep" / f"{i}.png", size, seed=i)
        small = (size[0] // 4, size[1] // 4)
        (tmp_path / "lr" / "deep").mkdir(parents=True, exist_ok=True)
        with Image.open(gt) as image:
            cut = image.crop((0, 0, small[0] * 4, small[1] * 4))
            cut.resize(small, Image.Resampling.BICUBIC).save(tmp_path / f"lr/deep/{i}.bmp")
    result = Validation(config(tmp_path, border=3)).run(enlarge)
    assert list(result) == ["pairs"] and list(result["pairs"]) == ["psnr", "ssim"]
    psnr, ssim = [], []
    for i in range(2):
        lr = torch.from_numpy(pixels(tmp_path / f"lr/deep/{i}.bmp")).permute(2, 0, 1)[None]
        sr = enlarge(lr.float() / 255)[0].clamp(0, 1).permute(1, 2, 0).numpy()
        sr = np.rint(sr.astype(np.float64) * 255)
        gt = pixels(tmp_path / f"gt/deep/{i}.png")[: sr.shape[0], : sr.shape[1]]
        a, b = (luma(x.astype(np.float64))[3:-3, 3:-3] for x in (sr, gt))
        psnr.append(their_metrics.peak_signal_noise_ratio(b, a, data_range=255))
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        ssim.append(their_metrics.structural_similarity(a, b, data_range=255, **options))
    assert result["pairs"]["psnr"] == pytest.approx(np.mean(psnr), abs=1e-9)
    assert result["pairs"]["ssim"] == pytest.approx(np.mean(ssim), abs=1e-9)


def test_levels_get_worse_and_scores_repeat(tmp_path):
    for i in range(2):
        picture(tmp_path / "a" / f"{i}.png", seed=i)
    validation = Validation(config(tmp_path))
    assert validation.names == ["a/0", "a/1"]
    first = validation.run(enlarge)
    assert list(first) == ["clean", "weak", "standard", "severe"]
    assert first["clean"]["psnr"] > first["weak"]["psnr"] > first["severe"]["psnr"]
    torch.manual_seed(123)
    assert validation.run(enlarge) == first  # from the cache
    assert Validation(config(tmp_path)).run(enlarge) == first
    # Another picture changes nothing about the others, nor does leaving out a level.
    picture(tmp_path / "a" / "00.png", seed=7)
    names = [(one.name, one.level, one.lr) for one in each(tmp_path, ["severe"])]
    again = [(one.name, one.level, one.lr) for one in each(tmp_path, ["weak", "severe"])]
    assert [n[:2] for n in names] == [("a/0", "severe"), ("a/00", "severe"), ("a/1", "severe")]
    for name, level, lr in names:
        assert any((n, lv) == (name, level) and torch.equal(x, lr) for n, lv, x in again)


def each(folder, levels, **options):
    chosen = DegradedSet(folder, levels, 4, **options)
    return [
        one for name in chosen.names for one in chosen.samples(name, lambda *a: pytest.fail(str(a)))
    ]


def test_draws_differ_and_the_truth_is_told(tmp_path):
    from dasr_ops.train.degradations import labels, sample

    picture(tmp_path / "x.png")
    found = each(tmp_path, ["clean", "standard"], draws=3)
    assert [(one.level, one.draw) for one in found] == [
        ("clean", 0),
        *(("standard", draw) for draw in range(3)),
    ]
    assert not torch.equal(found[1].lr, found[2].lr)
    seed = samples_module.sample_seed("x", "standard", 2, 0)
    expected = labels(sample(torch.Generator().manual_seed(seed), 1, "standard"))
    assert torch.equal(found[3].v, expected)
    other = each(tmp_path, ["standard"], seed=1)
    assert not torch.equal(other[0].lr, found[1].lr)
    digest = hashlib.sha256(b"a\0b\0" + b"3\0" + b"7").hexdigest()
    assert samples_module.sample_seed("a", "b", 3, 7) == int(digest[:16], 16) // 2


def test_a_made_test_set_is_scored_by_level(tmp_path):
    for name in ("p/a", "b"):
        gt = picture(tmp_path / "gt" / f"{name}.png", (64, 64), seed=len(name))
        for level in ("severe", "weak", "fog"):
            (tmp_path / level / "lr" / name).parent.mkdir(parents=True, exist_ok=True)
            with Image.open(gt) as image:
                image.resize((16, 16)).save(tmp_path / level / "lr" / f"{name}.png")
    v = [i / 33 for i in range(33)]
    (tmp_path / "weak" / "lr" / "p" / "a.json").write_text(json.dumps({"v": v, "level": "weak"}))
    result = Validation(config(tmp_path)).run(enlarge)
    assert list(result) == ["weak", "severe", "fog"]
    assert result["weak"] == result["severe"]  # the same files
    made = open_folder(tmp_path, (), 4)
    vectors = {
        (one.level, one.name): one.v
        for name in made.names
        for one in made.samples(name, lambda *a: pytest.fail(str(a)))
    }
    torch.testing.assert_close(vectors.pop(("weak", "p/a")), torch.tensor([v]))
    assert all(vector is None for vector in vectors.values())


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.BatchNorm2d(3).eval()
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, lr):
        self.seen.append((self.training, self.dropout.training, torch.is_grad_enabled(), lr.dtype))
        return self.dropout(self.frozen(enlarge(lr))) * self.scale


def test_nothing_is_disturbed(tmp_path):
    picture(tmp_path / "x.png")
    model = Counting().train()
    model.frozen.eval()
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    Validation(config(tmp_path, levels=("severe",))).run(model)
    assert model.seen == [(False, False, False, torch.float32)]
    assert model.training and model.dropout.training and not model.frozen.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)

    def broken(lr):
        raise RuntimeError("no")

    model.forward = broken
    with pytest.raises(RuntimeError, match="no"):
        Validation(config(tmp_path, levels=("weak",))).run(model)
    assert model.training


def test_what_is_not_finite_is_a_score(tmp_path):
    picture(tmp_path / "x.png")
    result = Validation(config(tmp_path, levels=("clean",))).run(lambda lr: enlarge(lr) * math.nan)
    assert math.isnan(result["clean"]["psnr"])
    gt = read_rgb(tmp_path / "x.png").float() / 255
    result = Validation(config(tmp_path, levels=("clean",))).run(lambda lr: gt.half())
    assert result["clean"]["psnr"] == math.inf
    assert result["clean"]["ssim"] == pytest.approx(1, abs=1e-12)


def test_a_picture_too_large_for_the_memory(tmp_path):
    picture(tmp_path / "large.png", (96, 96))
    picture(tmp_path / "small.png", (64, 64))

    def model(lr):
        if lr.shape[3] == 24:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return enlarge(lr)

    validation = Validation(config(tmp_path, levels=("clean",)))
    with pytest.warns(UserWarning, match="not enough memory"):
        result = validation.run(model)
    (tmp_path / "large.png").unlink()
    assert result == Validation(config(tmp_path, levels=("clean",))).run(model)


def test_pictures_that_vanish(tmp_path):
    path = picture(tmp_path / "x.png")
    validation = Validation(config(tmp_path))
    path.unlink()
    with pytest.warns(UserWarning) as caught:
        assert validation.run(enlarge) == {}
    assert "leaves out x" in str(caught[0].message)
    assert "no picture can be used any more" in str(caught[1].message)


def test_another_size_is_named(tmp_path):
    picture(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"model: expected \[1, 3, 88, 96\] for x, got"):
        Validation(config(tmp_path)).run(lambda lr: enlarge(lr, 2))


def test_bad_pictures_are_left_out_with_one_warning_each(tmp_path):
    picture(tmp_path / "good.png")
    picture(tmp_path / "tiny.png", (18, 60))  # 18 rounded down to 16: 8 within the borders
    (tmp_path / "text.png").write_text("no picture")
    whole = picture(tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning) as caught:
        validation = Validation(config(tmp_path, levels=("clean",)))
        first = validation.run(enlarge)
        assert validation.run(enlarge) == first
    assert len(caught) == 3
    assert set(validation.skipped) == {"tiny", "text", "half"}
    assert "16x60 is below 19 pixels a side" in validation.skipped["tiny"]
    (tmp_path / "half.png").unlink()
    assert Validation(config(tmp_path, levels=("clean",), limit=1)).names == ["good"]
    for name in ("good.png", "tiny.png"):
        (tmp_path / name).unlink()
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"validation\.pictures: none of 1 pictures can be used"),
    ):
        Validation(config(tmp_path))


def test_a_single_small_picture_is_scored_at_every_level(tmp_path):
    path = picture(tmp_path / "small.png", (36, 36))
    levels = ("clean", "weak", "standard", "severe")
    validation = Validation(config(path, levels=levels))
    assert validation.names == ["small"] and list(validation.run(enlarge)) == list(levels)


def test_folders_that_do_not_fit(tmp_path):
    def refused(folder, match):
        with pytest.raises(ValueError, match=match):
            Validation(config(folder))

    refused(None, "validation.pictures: expected a folder, got None")
    refused(tmp_path / "none", "validation.pictures: expected a folder or a picture, got")
    refused(tmp_path, "found none in")
    lr = picture(tmp_path / "lr" / "a.png", (20, 20))
    refused(tmp_path, r"has lr/ but no gt/")
    picture(tmp_path / "gt" / "b.png", (80, 80))
    refused(tmp_path, r"without partner in .*gt: .*lr/a.png; without partner in .*lr: .*gt/b.png")
    lr.rename(lr.with_name("b.png"))
    assert Validation(config(tmp_path)).names == ["b"]
    picture(tmp_path / "gt" / "b.png", (84, 80))
    refused(tmp_path, r"lr/b.png: 20x20 magnified by 4 is 80x80, which does not fit .* 84x80")
    picture(tmp_path / "gt" / "b.jpg", (80, 80))
    refused(tmp_path, r"have one name: b")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_any_mode_is_read(tmp_path, mode):
    path = tmp_path / "x.png"
    if mode == "I;16":
        values = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1500
        Image.fromarray(values).save(path)
        expected = np.repeat(np.rint(values / 257)[..., None], 3, axis=2)
    else:
        picture(path, (7, 5), mode=mode)
        expected = pixels(path)
    found = read_rgb(path)
    assert found.dtype == torch.uint8 and list(found.shape) == [1, 3, 5, 7]
    np.testing.assert_array_equal(found[0].permute(1, 2, 0).numpy(), expected)
    assert read_size(path) == (5, 7)


def test_turned_pictures_are_put_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (7, 5)).save(tmp_path / "x.jpg", exif=exif)
    assert read_size(tmp_path / "x.jpg") == (7, 5)
    assert list(read_rgb(tmp_path / "x.jpg").shape[2:]) == [7, 5]


def test_names_of_pictures(tmp_path):
    for name in ("b/x.PNG", "a.b.jpg", ".hidden.png", ".cache/x.png", "c_x4.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(find_pictures(tmp_path)) == ["a.b", "b/x", "c_x4"]
    assert list(find_pictures(tmp_path, "_x4")) == ["a.b", "b/x", "c"]


def test_sizes():
    assert shared_size((83, 80), (20, 20), 4) == (80, 80)
    for gt in ((79, 80), (84, 80)):
        with pytest.raises(ValueError, match="20x20 magnified by 4 is 80x80"):
            shared_size(gt, (20, 20), 4)


@pytest.mark.parametrize(
    "content", ["{", '{"v": [1, 2]}', '{"v": "x"}', json.dumps({"v": [math.nan] * 33})]
)
def test_broken_vectors(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x.json"):
        read_vector(tmp_path / "x.json")


def test_vectors_that_are_not_there(tmp_path):
    assert read_vector(tmp_path / "x.json") is None
    (tmp_path / "x.json").write_text('{"other": 1}')
    assert read_vector(tmp_path / "x.json") is None


def test_bad_numbers(tmp_path):
    picture(tmp_path / "x.png")
    for options, name in (({"draws": 0}, "draws"), ({"seed": -1}, "seed")):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            DegradedSet(tmp_path, ["weak"], 4, **options)
    for levels in ([], ["foggy"]):
        with pytest.raises(ValueError, match="levels: expected names among"):
            DegradedSet(tmp_path, levels, 4)


def test_damaged_pairs_are_told(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / "gt" / f"{name}.png", (80, 80))
        picture(tmp_path / "lr" / f"{name}.png", (20, 20))
    (tmp_path / "lr" / "b.png").write_bytes(b"x")
    told = []
    pairs = PairSet({"pairs": tmp_path / "lr"}, tmp_path / "gt", 4)
    found = [one.name for n in pairs.names for one in pairs.samples(n, lambda *a: told.append(a))]
    assert found == ["a"]
    assert told[0][0].endswith("lr/b.png")
