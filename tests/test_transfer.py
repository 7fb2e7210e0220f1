"""Runs carried to another machine in small files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch

from dasr_ops.train.config_files import load_config
from dasr_ops.train.engine import train
from dasr_ops.train.transfer import main, pack, unpack

from .training_tools import newest, tensors, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    config = tiny(folder, schedule__iterations=4)
    assert train(config) == 0
    assert pack(config.run, folder / "pack", 20_000) == 4
    return config, folder / "pack"


def test_a_run_goes_on_elsewhere(carried, tmp_path, capsys):
    config, packed = carried
    parts = sorted(path.name for path in packed.glob("run.*.part"))
    assert len(parts) > 2 and all((packed / name).stat().st_size <= 20_000 for name in parts)
    checkpoint = config.run / "checkpoints" / "step_00000004.pt"
    total = sum((packed / name).stat().st_size for name in parts)
    assert total < 0.6 * checkpoint.stat().st_size

    run = tmp_path / "elsewhere"
    assert unpack(packed, run) == 4
    before, after = tensors(newest(config)), tensors(newest(replace(config, run=run)))
    for name, found in after.items():
        if name.startswith("/learner/discriminator/"):
            torch.testing.assert_close(found, before[name], rtol=2**-11, atol=2**-25)
        else:
            assert name.startswith("/learner/restorer/") and torch.equal(found, before[name]), name
    assert {n for n in before if n.startswith(("/learner/restorer/", "/learner/disc"))} >= set(
        after
    )

    again = load_config(run)
    again.run, again.schedule.iterations = run, 8
    assert train(again) == 0
    assert "going on from step 4" in capsys.readouterr().err
    with open(run / "log.csv", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == list(range(1, 9))
    # It rises once more, from next to nothing: by 1/200 of its course in each step.
    rates = [float(rows[step]["lr"]) for step in (5, 6)]
    plain = tiny(tmp_path, schedule__iterations=8)
    assert rates == pytest.approx(
        [plain.optimizer.lr * share * rise / 200 for share, rise in _cosine(plain, (4, 5))],
        rel=1e-4,
    )
    state = newest(again)
    assert state["learner"]["anew"] == 4 and "optimizer" in state["learner"]
    # And an ordinary checkpoint goes on where it was.
    again.schedule.iterations = 9
    assert train(again) == 0
    assert newest(again)["learner"]["anew"] == 4


def _cosine(config, steps):
    from dasr_ops.train.engine.schedules import factor

    return [(factor(config.schedule, step), number) for number, step in enumerate(steps, 1)]


def test_an_older_run_is_taken_on_and_a_newer_one_stays(carried, tmp_path, capsys):
    _, packed = carried
    older = tiny(tmp_path, schedule__iterations=2)
    assert train(older) == 0
    assert unpack(packed, older.run) == 4
    assert newest(older)["step"] == 4
    with pytest.raises(ValueError, match="is at step 4 already, the pack at 4"):
        unpack(packed, older.run)
    assert main(["unpack", str(packed), str(older.run)]) == 1
    assert "error: " in capsys.readouterr().err


def test_what_is_damaged_makes_no_run(carried, tmp_path):
    config, _ = carried
    packed, run = tmp_path / "pack", tmp_path / "new"
    with pytest.raises(ValueError, match="expected a pack"):
        unpack(packed, run)
    assert main(["pack", str(config.run), str(packed), "--part-size", "20k"]) == 0
    first, second = sorted(packed.glob("run.*.part"))[:2]
    data = bytearray(second.read_bytes())
    data[100] ^= 1
    second.write_bytes(data)
    with pytest.raises(ValueError, match=r"run\.01\.part: missing or damaged"):
        unpack(packed, run)
    first.unlink()
    with pytest.raises(ValueError, match=r"run\.00\.part: missing or damaged"):
        unpack(packed, run)
    (packed / "run.json").write_text(json.dumps({"parts": [1]}))
    with pytest.raises(ValueError, match=r"run\.json: damaged"):
        unpack(packed, run)
    assert not run.exists()
    assert pack(config.run, packed) == 4  # the old parts are gone
    assert sorted(path.name for path in packed.iterdir()) == ["run.00.part", "run.json"]
    assert unpack(packed, run) == 4


def test_without_a_run(tmp_path, capsys):
    assert main(["pack", str(tmp_path), str(tmp_path / "pack")]) == 1
    assert "expected the folder of a run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="part_size: expected 1 or more, got 0"):
        pack(tmp_path, tmp_path / "pack", 0)
    assert not (tmp_path / "pack").exists()
