"""The command `dasr degrade`: what it writes, that seeds fix it, bad pictures and command lines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.cli import degrade as command
from dasr_ops.cli import main
from dasr_ops.train.degradations import (
    LEVELS,
    apply,
    decode,
    describe,
    labels,
    sample,
    sample_seeds,
    usm_sharpen,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(path: Path, size: tuple[int, int] = (50, 39), seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    image.save(path)
    return np.asarray(Image.open(path).convert("RGB"))


def run(*arguments: object) -> int:
    return main(["degrade", *map(str, arguments)])


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    picture(folder / "a.png")
    picture(folder / "deep" / "er" / "b.png", (24, 33), seed=1)
    return folder


def test_names_of_the_levels_are_those_of_the_table():
    assert set(get_args(command.LevelName)) == set(LEVELS)


@pytest.mark.parametrize("scheme", ["unified", "official"])
def test_a_test_set_holds_pictures_parameters_and_labels(photos, tmp_path, scheme):
    out = tmp_path / "out"
    assert run(photos, "--output", out, "--scheme", scheme, "--seed", 5) == 0
    levels = ("clean", "weak", "standard", "severe")
    names = ("a", "deep/er/b")
    expected = {f"gt/{name}.png" for name in names} | {"degrade.json"}
    for kind in ("png", "json"):
        expected |= {f"{level}/lr/{name}.{kind}" for level in levels for name in names}
    assert set(tree(out)) == expected

    for name in names:
        source = np.asarray(Image.open(photos / f"{name}.png"))
        gt = np.asarray(Image.open(out / "gt" / f"{name}.png"))
        height, width = (side // 4 * 4 for side in source.shape[:2])
        np.testing.assert_array_equal(gt, source[:height, :width])
        x = torch.from_numpy(gt.copy()).permute(2, 0, 1)[None].float() / 255
        for level in levels:
            record = json.loads((out / level / "lr" / f"{name}.json").read_text())
            seed = command.picture_seed(5, f"{name}.png", level, 0)
            params = sample_seeds([seed], level)
            low = (apply(params, x)[0] * 255).round().byte().permute(1, 2, 0).numpy()
            stored = np.asarray(Image.open(out / level / "lr" / f"{name}.png"))
            np.testing.assert_array_equal(stored, low)
            assert record["level"] == level and record["source"] == f"{name}.png"
            assert record["scale"] == 4 and record["seed"] == 5 and record["scheme"] == scheme
            assert record["parameters"] == describe(params)
            np.testing.assert_array_equal(
                np.float32(record["v"]), labels(params, scheme)[0].numpy()
            )


def test_the_parameters_say_what_the_label_says():
    for level in LEVELS:
        for params in (sample(torch.Generator().manual_seed(s), 1, level) for s in range(20)):
            said, read = describe(params), decode(labels(params))[0]
            assert (said["stage2"] is None) == (read.order is None)
            assert said["order"] == read.order and said["final_resize"]["mode"] == read.final_mode
            assert (said["sinc"] or {"size": None})["size"] == read.sinc_size
            for mine, stage in ((said["stage1"], read.stage1), (said["stage2"], read.stage2)):
                if mine is None:
                    continue
                blur = mine["blur"] or {"sigma_x": 0, "sigma_y": 0, "rotation": 0, "size": 7}
                found = (stage.kernel_size, stage.sigma_x, stage.sigma_y, stage.rotation)
                close = dict(rel=0, abs=2e-6 * math.pi)
                keys = ("size", "sigma_x", "sigma_y", "rotation")
                assert found == pytest.approx([blur[key] for key in keys], **close)
                resize = mine["resize"] or {"scale": 1, "mode": None}
                assert resize["mode"] == stage.mode
                assert resize["scale"] == pytest.approx(stage.scale, **close)
                noise = mine["noise"] or {"kind": None, "scale": 0, "grey": False}
                strength = noise.get("sigma", noise.get("scale"))
                assert (noise["kind"], noise["grey"]) == (stage.noise, stage.noise_grey)
                assert strength == pytest.approx(stage.noise_level, **close)
                assert (mine["jpeg"] or {"quality": None})["quality"] == stage.jpeg_quality


def test_more_pictures_and_levels_change_nothing(photos, tmp_path):
    assert run(photos, "-o", tmp_path / "one", "--quiet") == 0
    picture(photos / "A_first.png", seed=2)
    picture(photos / "deep" / "c.jpg", seed=3)
    options = ["--quiet", "--levels", "severe", "clean_area", "weak", "standard", "clean"]
    assert run(photos, "-o", tmp_path / "two", *options) == 0
    first, second = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert first.items() <= second.items() and len(second) > len(first)
    assert run(photos, "-o", tmp_path / "three", "--quiet", "--seed", 1) == 0
    third = tree(tmp_path / "three")
    assert third["gt/a.png"] == first["gt/a.png"]
    assert third["clean/lr/a.png"] == first["clean/lr/a.png"]
    assert third["severe/lr/a.png"] != first["severe/lr/a.png"]


def test_each_further_draw_has_a_folder(photos, tmp_path):
    one, three = tmp_path / "one", tmp_path / "three"
    assert run(photos, "-o", one, "--levels", "clean", "weak", "--quiet") == 0
    assert run(photos, "-o", three, "--levels", "clean", "weak", "--draws", 3, "--quiet") == 0
    first, second = tree(one), tree(three)
    assert first.items() <= second.items()
    folders = {name.split("/")[0] for name in second if "/" in name}
    assert folders == {"gt", "clean", "weak", "weak-2", "weak-3"}
    draws = [second[f"{folder}/lr/a.png"] for folder in ("weak", "weak-2", "weak-3")]
    assert len(set(draws)) == 3


def test_scale_and_sharpening(photos, tmp_path):
    out = tmp_path / "out"
    assert run(photos, "-o", out, "--scale", 3, "--sharpen", "--levels", "clean", "--quiet") == 0
    gt = np.asarray(Image.open(out / "gt" / "a.png"))
    assert gt.shape == (39, 48, 3)
    x = torch.from_numpy(gt.copy()).permute(2, 0, 1)[None].float() / 255
    sharp = (usm_sharpen(x) * 255).round() / 255
    low = (apply(sample_seeds([0], "clean"), sharp, 3)[0] * 255).round().byte().permute(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "clean" / "lr" / "a.png")), low)
    assert json.loads((out / "clean" / "lr" / "a.json").read_text())["sharpen"] is True


def test_bad_pictures_are_reported_and_the_others_done(photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "empty.jpg").write_bytes(b"")
    picture(photos / "tiny.png", (9, 3))
    (photos / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    assert run(photos, "-o", out, "--levels", "weak") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert [Path(line.split(":")[1].strip()).name for line in lines] == [
        "broken.png",
        "empty.jpg",
        "tiny.png",
    ]
    assert lines[2].endswith("9x3 is too small for a scale of 4")
    assert {p.name for p in (out / "weak" / "lr").rglob("*.png")} == {"a.png", "b.png"}
    assert not list(out.rglob(".dasr-ops-*"))


def test_what_exists_is_kept_unless_told_otherwise(photos, tmp_path, capsys):
    out = tmp_path / "out"
    options = [photos, "-o", out, "--levels", "weak", "clean"]
    assert run(*options) == 0
    before = tree(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (out / "weak" / "lr" / "a.png").unlink()  # as a run that was killed leaves it
    (out / "clean" / "lr" / "a.json").unlink()
    (out / "gt" / "deep" / "er" / "b.png").unlink()
    assert run(*options) == 0
    (out / "clean" / "lr" / "a.json").write_text("[]")
    assert run(*options) == 0
    assert tree(out) == before
    kept = out / "weak" / "lr" / "deep" / "er" / "b.png"
    assert kept.stat().st_mtime_ns == times[kept]
    capsys.readouterr()
    assert run(*options) == 0
    assert "skipped, since they exist (see --overwrite): 2" in capsys.readouterr().err

    assert run(*options, "--seed", 1) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert tree(out) == before
    assert run(*options, "--seed", 1, "--overwrite", "--quiet") == 0
    assert tree(out)["weak/lr/a.png"] != before["weak/lr/a.png"]
    assert not capsys.readouterr().err


def test_a_change_of_settings_that_was_interrupted_is_finished(photos, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(photos, "-o", first, "--quiet") == 0
    assert run(photos, "-o", second, "--quiet", "--scale", 3) == 0
    # Another scale for some of the levels; then a plain run for all of them.
    options = ["--levels", "weak", "--scale", 3, "--overwrite", "--quiet"]
    assert run(photos, "-o", first, *options) == 0
    assert tree(first) != tree(second)
    assert run(photos, "-o", first, "--scale", 3, "--quiet") == 0
    assert tree(first) == tree(second)


def test_another_picture_of_the_same_name(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(photos, "-o", out, "--levels", "clean", "weak", "--draws", 2, "--quiet") == 0
    before = tree(out)
    picture(photos / "a.png", seed=7)
    assert run(photos, "-o", out, "--levels", "clean", "severe") == 1  # severe is missing
    assert "gt/a.png is another picture, and " in capsys.readouterr().err
    found = tree(out)
    assert {name: found[name] for name in before} == before
    assert "severe/lr/a.png" not in found and "severe/lr/deep/er/b.png" in found
    assert run(photos, "-o", out, "--levels", "severe", "--overwrite", "--quiet") == 0
    fresh = tmp_path / "fresh"
    assert run(photos, "-o", fresh, "--levels", "severe", "--quiet") == 0
    expected, found = tree(fresh), tree(out)
    for name in ("gt/a.png", "severe/lr/a.png", "severe/lr/a.json"):
        assert found[name] == expected[name]
    assert "clean/lr/a.png" not in found and "weak/lr/a.json" not in found  # of the other picture
    assert "weak-2/lr/a.png" not in found and "weak-2/lr/deep/er/b.png" in found
    assert "clean/lr/deep/er/b.png" in found


def test_a_picture_that_changed_with_the_settings_is_made_again(photos, tmp_path):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    assert run(photos, "-o", out, "--levels", "weak", "--quiet") == 0
    (out / "degrade.json").write_text((out / "degrade.json").read_text().replace("4", "3"))
    for place in (out, fresh):  # killed behind the settings: nothing was made with them yet
        assert run(photos, "-o", place, "--levels", "weak", "--scale", 3, "--quiet") == 0
    assert tree(out) == tree(fresh)


def test_results_inside_the_folder_are_not_degraded_again(photos):
    out = photos / "sets"
    for _ in range(2):
        assert run(photos, "-o", out, "--levels", "clean", "--quiet") == 0
        assert {p.name for p in (out / "gt").rglob("*.png")} == {"a.png", "b.png"}


def test_a_full_disk_is_reported_once_per_picture(photos, tmp_path, capsys, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert run(photos, "-o", tmp_path / "out", "--levels", "weak") == 1
    assert capsys.readouterr().err.count("No space left on device") == 2
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["photos"],
        ["-o", "out"],
        ["missing", "-o", "out"],
        ["photos/a.png", "-o", "out"],
        ["photos", "-o", "photos"],
        ["photos/deep", "-o", "photos"],
        ["photos", "-o", "photos/a.png"],
        ["photos", "-o", "out", "--levels", "heavy"],
        ["photos", "-o", "out", "--levels"],
        ["photos", "-o", "out", "--scale", "0"],
        ["photos", "-o", "out", "--draws", "0"],
        ["photos", "-o", "out", "--seed", "-1"],
        ["photos", "-o", "out", "--scheme", "other"],
        ["empty", "-o", "out"],
    ],
)
def test_usage_errors(photos, tmp_path, monkeypatch, capsys, arguments):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert run(*arguments) == 2
    assert capsys.readouterr().err
    assert tree(tmp_path) == before


def test_two_pictures_of_one_name_are_refused(photos, tmp_path, capsys):
    picture(photos / "a.jpg")
    assert run(photos, "-o", tmp_path / "out") == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help(capsys):
    assert run("--help") == 0
    assert "OUTPUT/gt/NAME.png" in capsys.readouterr().out
