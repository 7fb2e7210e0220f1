"""The benchmark from file to file: its pipelines do the same, and its report says what was seen."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benches import upscale_speed as bench
from dasr_ops.bench import pipelines, startup
from dasr_ops.bench.peers import ANIMEVIDEO, X4PLUS, RRDBNet, SRVGGNetCompact

from .ncnn_files import write_compact, write_rrdb_net

pytestmark = pytest.mark.usefixtures("one_thread")


def test_subjects_agree_are_timed_and_tabulated(tmp_path):
    pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")
    torch.manual_seed(0)
    write_rrdb_net(RRDBNet(4, 1, 2), tmp_path, X4PLUS, half=True)
    keys = [key for key in bench._NAMES if "video" not in key]
    with torch.no_grad():
        subjects, errors, missing = bench.build(keys, 24, 8, tmp_path, tmp_path)
        assert list(missing) == [f"{X4PLUS}, ncnn"]  # it is not beside the weights
        assert 0 < max(errors.values()) <= bench._TOLERANCE
        source = tmp_path / "source.png"
        pipelines.write_picture(pipelines.picture(26, 20), source)
        tile = pipelines.picture(12, 16)
        seconds = bench.measure(subjects, source, tmp_path, tile, 1)
    assert [*seconds] == [bench._NAMES[key] for key in keys if not key.endswith("ncnn")]
    assert all(len(times["network"]) == len(times["pipeline"]) == 1 for times in seconds.values())
    for index in range(len(subjects)):
        assert Image.open(tmp_path / f"result-{index}.png").size == (80, 104)


def test_pictures_that_differ_are_noticed(tmp_path):
    files = {name: tmp_path / f"{name}.png" for name in (bench.OURS, bench.OFFICIAL)}
    for name, value in zip(files, (100, 101), strict=True):
        Image.new("RGB", (8, 8), (value,) * 3).save(files[name])
    with pytest.raises(RuntimeError, match=r"official DASR: 1\.00 levels"):
        bench.check_pictures(files)


def test_a_network_that_errs_is_not_timed(tmp_path, monkeypatch):
    write_compact(SRVGGNetCompact(4, 1), tmp_path, ANIMEVIDEO, half=False)
    real = bench.run_network
    monkeypatch.setattr(bench, "run_network", lambda layers, lr: real(layers, lr) + 0.01)
    with torch.no_grad(), pytest.raises(RuntimeError, match="animevideov3-x4: error"):
        bench.build(["animevideo"], 24, 8, tmp_path, tmp_path)


@pytest.mark.parametrize(("tile", "context"), [(0, 0), (64, 4), (20, 6), (13, 6)])
def test_plain_tiles_give_what_the_whole_gives(tile, context):
    calls = []

    def network(lr):
        calls.append(lr.shape[2:])
        smooth = F.avg_pool2d(lr, 3, 1, 1, count_include_pad=False)
        return F.interpolate(smooth, scale_factor=4, mode="nearest")

    lr = torch.rand(1, 3, 31, 50)
    output = pipelines.magnify(network, lr, tile, context)
    assert all(max(sides) <= tile for sides in calls) or tile == 0
    assert len(calls) == (1 if tile in (0, 64) else len(calls)) > 0
    torch.testing.assert_close(output, network(lr))


def test_a_pipeline_by_its_formula(tmp_path):
    class Brighter(torch.nn.Module):
        def forward(self, lr):
            return F.interpolate(lr * 1.2 + 0.01, scale_factor=4, mode="nearest")

    source, target = tmp_path / "a.png", tmp_path / "b.png"
    pixels = np.random.default_rng(0).integers(0, 256, (11, 17, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(source)
    pipelines.peer(Brighter(), 8, 2, torch.channels_last).pipeline(source, target)
    want = np.clip(pixels / 255 * 1.2 + 0.01, 0, 1) * 255
    found = np.asarray(Image.open(target)).astype(float)
    # Half a level of rounding, and that of float32.
    assert np.abs(found - want.repeat(4, 0).repeat(4, 1)).max() <= 0.5 + 1e-4


def test_report():
    seconds = {
        bench.OURS: {"pipeline": [1.0, 2.0, 1.0], "network": [0.5, 0.5, 0.5]},
        bench.OFFICIAL: {"pipeline": [4.0, 4.0, 6.0], "network": [2.0, 2.0, 3.0]},
    }
    report = {
        "machine": {"name": "CPU", "threads": 1, "torch": "2", "dasr_ops": "0", "commit": "c"},
        "setting": {"width": 500, "height": 250, "tile": 256, "rounds": 3, "tile_pixels": 62_500},
        "errors": {bench.OURS: 1e-6},
        "missing": {X4PLUS: "not installed"},
        "seconds": seconds,
        "start": {"tile": 256, "seconds": {"import torch": [1.0, 1.2, 1.1]}},
    }
    lines = bench.table(report).splitlines()
    # Two megapixels of output, an eighth of a megapixel of input; a tile of one megapixel.
    assert "| dasr upscale, official size | 0.500 | 8.00 | 1.00 | 0.500 | 1.00 | 1e-06 |" in lines
    assert "| official DASR | 2.000 | 32.00 | 4.00 | 2.000 | 4.00 |  |" in lines
    assert f"Not measured: {X4PLUS}: not installed" in lines
    assert "| import torch | 1.10 | 1.00 |" in lines


def test_processes_and_imports(tmp_path):
    (tmp_path / "slow_module_of_a_test.py").write_text("import json\n")
    env = {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import slow_module_of_a_test"]
    times = startup.time_processes({"a": command}, 2, env)
    assert len(times["a"]) == 2 and min(times["a"]) > 0
    imports = startup.profile_imports("import slow_module_of_a_test", env)
    (found,) = (entry for entry in imports if entry.module == "slow_module_of_a_test")
    (json,) = (entry for entry in imports if entry.module == "json")
    assert found.total >= json.total >= json.own >= 0
    assert found.total == pytest.approx(found.own + json.total, abs=1e-5)
    only = startup.profile_imports("import slow_module_of_a_test", env, own="json")
    assert {"json", "json.decoder"} <= {entry.module for entry in only}
    assert all(entry.module.partition(".")[0] == "json" for entry in only)
    with pytest.raises(RuntimeError, match="exit code 3"):
        startup.time_processes({"a": [sys.executable, "-c", "raise SystemExit(3)"]}, 1)
