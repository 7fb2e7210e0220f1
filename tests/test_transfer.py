"""Runs carried to another machine in small files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import replace

import pytest
import torch

from dasr_ops.train.config_files import load_config
from dasr_ops.train.engine import TrainingError, train
from dasr_ops.train.engine.lock import locked
from dasr_ops.train.engine.schedules import factor
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


def test_what_is_carried(carried, tmp_path):
    config, packed = carried
    parts = list(packed.glob("run.*.part"))
    assert len(parts) > 2 and all(path.stat().st_size <= 20_000 for path in parts)
    run = tmp_path / "elsewhere"
    assert unpack(packed, run) == 4
    before, after = tensors(newest(config)), tensors(newest(replace(config, run=run)))
    gone = ("/learner/optimizer", "/learner/discriminator_optimizer", "/stream", "/random")
    assert {name for name in before if not name.startswith(gone)} == set(after)
    for name, found in after.items():
        # Kernels are rounded to float16; averages are their difference to the weights, rounded too.
        tolerance = (
            {"rtol": 2**-11, "atol": 2**-25} if found.dim() > 1 else {"rtol": 1e-6, "atol": 0}
        )
        torch.testing.assert_close(found, before[name], **tolerance)
    average, weight = (
        f"/learner/{part}/network.net_g.conv_hr.weight" for part in ("average", "restorer")
    )
    moved = (before[average] - before[weight]).abs().max()
    error = (after[average] - before[average]).abs().max()
    assert 0 < error < moved / 20  # what averaging does is carried


def test_a_run_goes_on_elsewhere(carried, tmp_path, capsys):
    config, packed = carried
    run = tmp_path / "elsewhere"
    assert unpack(packed, run) == 4
    there = load_config(run)
    there.run, there.schedule.iterations = run, 8
    # Pictures lie elsewhere, which is fine; another network would not be.
    there.data.train = tiny(tmp_path).data.train
    assert there.data.train != config.data.train
    there.network.num_feat += 2
    assert train(there) == 1
    assert "network.num_feat was 8, is 10" in capsys.readouterr().err
    there.network.num_feat -= 2
    assert train(there) == 0
    output = capsys.readouterr().err
    assert "going on from step 4; optimisers begin anew, with a rising rate" in output
    with open(run / "log.csv", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == list(range(1, 9))
    for number, step in enumerate((4, 5), 1):
        expected = config.optimizer.lr * factor(there.schedule, step) * number / 200
        assert float(rows[step + 1]["lr"]) == pytest.approx(expected, rel=1e-4)
    assert newest(there)["learner"]["anew"] == 4
    # An ordinary checkpoint goes on where it was.
    there.schedule.iterations = 9
    assert train(there) == 0
    assert newest(there)["learner"]["anew"] == 4
    assert "begin anew" not in capsys.readouterr().err


def test_an_older_run_is_taken_on_and_a_newer_one_stays(carried, tmp_path, capsys):
    _, packed = carried
    older = tiny(tmp_path, schedule__iterations=2)
    assert train(older) == 0
    assert unpack(packed, older.run) == 4
    assert newest(older)["step"] == 4
    assert (older.run / "log.csv").read_text().count("\n") == 5
    # One that was killed before the settings came is repeated.
    (older.run / "config.yml").unlink()
    assert unpack(packed, older.run) == 4
    assert (older.run / "config.yml").is_file()
    assert train(load_config(older.run)) == 0  # writes nothing of its own at the step of the pack
    further = tiny(tmp_path, schedule__iterations=5)
    assert train(further) == 0
    with pytest.raises(ValueError, match="is at step 5 already, the pack at 4"):
        unpack(packed, older.run)
    assert main(["unpack", str(packed), str(older.run)]) == 1
    assert "error: " in capsys.readouterr().err


def test_an_equal_step_of_the_run_itself_is_worth_more(carried):
    config, packed = carried
    with pytest.raises(ValueError, match="is at step 4 already, the pack at 4"):
        unpack(packed, config.run)


def test_another_run_and_one_that_goes_on_stay_as_they_are(carried, tmp_path):
    _, packed = carried
    other = tiny(tmp_path, schedule__iterations=2, optimizer__lr=1e-4)
    assert train(other) == 0
    before = {path: path.read_bytes() for path in other.run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"holds another run: optimizer.lr was 0.0001, is 0.001"):
        unpack(packed, other.run)
    assert before == {path: path.read_bytes() for path in other.run.rglob("*") if path.is_file()}
    same = tiny(tmp_path, run=tmp_path / "same", schedule__iterations=2)
    assert train(same) == 0
    with locked(same.run), pytest.raises(TrainingError, match="run"):
        unpack(packed, same.run)
    assert newest(same)["step"] == 2


def _rewritten(packed, folder, change):
    """Make a pack whose content was changed by somebody else, checksums and all."""
    parts = json.loads((packed / "run.json").read_text())["parts"]
    data = b"".join((packed / part["name"]).read_bytes() for part in parts)
    state = torch.load(io.BytesIO(data), weights_only=True)
    folder.mkdir()
    torch.save(change(state) or state, folder / "run.part")
    checksum = hashlib.sha256((folder / "run.part").read_bytes()).hexdigest()
    listed = {"format": 1, "step": 4, "parts": [{"name": "run.part", "sha256": checksum}]}
    (folder / "run.json").write_text(json.dumps(listed))
    return folder


CHANGES = {
    "logs": lambda state: state["logs"].update({"../outside.txt": "x"}),
    "format": lambda state: state.update(format=99),
    "step": lambda state: state.update(step="4"),
    "settings": lambda state: state.update(yaml=1),
    "no averages": lambda state: {**state, "learner": {"restorer": state["learner"]["restorer"]}},
    "no learner": lambda state: {k: v for k, v in state.items() if k != "learner"},
    "no state": lambda state: [1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_packs_of_others_write_nothing(carried, tmp_path, change):
    folder = _rewritten(carried[1], tmp_path / "pack", CHANGES[change])
    with pytest.raises(ValueError, match="not a pack of this version"):
        unpack(folder, tmp_path / "deep" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_a_pack_that_nobody_changed_is_taken(carried, tmp_path):
    assert (
        unpack(_rewritten(carried[1], tmp_path / "pack", lambda state: None), tmp_path / "r") == 4
    )


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
    with pytest.raises(ValueError, match=r"\.01\.part: missing or damaged"):
        unpack(packed, run)
    first.unlink()
    with pytest.raises(ValueError, match=r"\.00\.part: missing or damaged"):
        unpack(packed, run)
    for content, message in (
        ({"format": 1, "parts": [1]}, "damaged"),
        ({"format": 2, "parts": []}, "not of format 1"),
        ([], "not of format 1"),
    ):
        (packed / "run.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"run\.json: {message}"):
            unpack(packed, run)
    assert not run.exists()
    assert pack(config.run, packed) == 4  # the old parts are gone
    assert sorted(path.suffix for path in packed.iterdir()) == [".json", ".part"]
    assert unpack(packed, run) == 4


def test_without_a_run(tmp_path, capsys):
    assert main(["pack", str(tmp_path), str(tmp_path / "pack")]) == 1
    assert "expected the folder of a run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="part_size: expected 1 or more, got 0"):
        pack(tmp_path, tmp_path / "pack", 0)
    assert not (tmp_path / "pack").exists()
