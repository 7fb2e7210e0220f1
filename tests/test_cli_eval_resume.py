"""`dasr eval --output`: what was interrupted goes on, and only if nothing has changed."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic, files, save_dasr
from dasr_ops.models._digests import network_digest
from dasr_ops.train.evaluate import (
    Journal,
    Record,
    file_digest,
    source_digest,
)
from dasr_ops.train.evaluate.run import Found
from dasr_ops.train.watch import scores

from .eval_tools import picture, read, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(tmp_path):
    for index, name in enumerate(("a", "b", "c", "d")):
        picture(tmp_path / "photos" / f"{name}.png", seed=index)
    return tmp_path / "photos"


@pytest.fixture
def weights(tmp_path):
    return _weights(tmp_path / "w.safetensors", 0)


@pytest.fixture
def restored(monkeypatch):
    """Counts results that are scored; beyond ``most`` of them somebody presses Ctrl-C."""

    class Count:
        made, most = 0, 10**9

    psnr, count = scores.psnr_y, Count()

    def counting(*arguments):
        if count.made == count.most:
            raise KeyboardInterrupt
        count.made += 1
        return psnr(*arguments)

    monkeypatch.setattr(scores, "psnr_y", counting)
    return count


def _weights(path, seed):
    torch.manual_seed(seed)
    net_g = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2)
    save_dasr(DASR(net_g, Degradation_Predictor(nf=4, num_networks=2)), path)
    return path


def _result(output):
    content, rows = read(output)
    means = [by_level for method in content["means"].values() for by_level in method.values()]
    for row in [*means, *rows]:
        row.pop("seconds")
    return content["means"], rows, content["failed"], content["vector"]


def test_what_was_interrupted_goes_on(tmp_path, photos, weights, restored, capsys):
    options = [photos, "--weights", weights, "--vector", "--draws", 1, "--levels", "clean", "weak"]
    assert run(*options, "-o", tmp_path / "whole") == 0
    each = restored.made // 4  # bicubic and DASR, two levels
    assert each == 4

    restored.made, restored.most = 0, 2 * each + 1  # within the third picture
    assert run(*options, "-o", tmp_path / "t.csv") == 130
    assert {path.name for path in tmp_path.glob("t*")} == {"t.partial"}
    with (tmp_path / "t.partial").open("a") as file:
        file.write('{"name": "c", "rec')  # a kill while it was written

    capsys.readouterr()
    restored.made, restored.most = 0, each  # the third, and Ctrl-C again
    assert run(*options, "-o", tmp_path / "t.csv") == 130
    assert "going on: 2 of 4 pictures are done" in capsys.readouterr().err
    restored.made, restored.most = 0, 10**9
    assert run(*options, "-o", tmp_path / "t.csv") == 0
    assert restored.made == each
    assert "going on: 3 of 4 pictures are done" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("t*")} == {"t.csv", "t.json", "t.md"}
    assert _result(tmp_path / "t") == _result(tmp_path / "whole")


@pytest.mark.parametrize("change", ["networks", "files", "border", "sources", "broken"])
def test_what_has_changed_begins_anew(
    tmp_path, photos, weights, restored, change, capsys, monkeypatch
):
    options = [photos, "--weights", weights, "--draws", 1, "--levels", "clean"]
    restored.most = 4
    assert run(*options, "-o", tmp_path / "t") == 130
    capsys.readouterr()
    if change == "networks":
        _weights(weights, 1)
    elif change == "files":
        picture(photos / "a.png", seed=9)
    elif change == "border":
        options += ["--border", 3]
    elif change == "sources":
        monkeypatch.setattr("dasr_ops.train.evaluate.source_digest", lambda: "other")
    else:
        (tmp_path / "t.partial").write_bytes(b"\xff\x00")
    restored.made, restored.most = 0, 10**9
    assert run(*options, "-o", tmp_path / "t") == 0
    assert restored.made == 8
    said = f"t.partial is of another evaluation ({change}): beginning anew"
    assert (said in capsys.readouterr().err) == (change != "broken")


def test_what_changes_no_result_does_not_matter(tmp_path, photos, weights, restored, monkeypatch):
    monkeypatch.setenv("DASR_OPS_COMMIT", "before")
    options = [photos, "--weights", weights, "--draws", 1, "--levels", "clean"]
    restored.most = 4
    assert run(*options, "--limit", 3, "-o", tmp_path / "t") == 130
    restored.made, restored.most = 0, 10**9
    monkeypatch.setenv("DASR_OPS_COMMIT", "after")
    assert run(*options, "--time", "--quiet", "-o", tmp_path / "t") == 0
    assert restored.made == 4


def test_what_failed_is_tried_again(tmp_path, photos, restored, capsys):
    sr = tmp_path / "sr"
    shutil.copytree(photos, sr)
    (sr / "a.png").write_bytes(b"x")
    options = ["--sr", sr, "--gt", photos, "-o", tmp_path / "t"]
    restored.most = 2
    assert run(*options) == 130
    capsys.readouterr()
    restored.made, restored.most = 0, 10**9
    assert run(*options) == 1
    assert restored.made == 1 and "error: a, sr: " in capsys.readouterr().err
    assert not (tmp_path / "t.partial").exists()


def test_a_full_disk_ends_nothing(tmp_path, photos, capsys, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(files, "_sync", lambda path: None)  # of the report
    assert run("--sr", photos, "--gt", photos, "-o", tmp_path / "t") == 0
    err = capsys.readouterr().err
    assert f"warning: {tmp_path / 't.partial'} cannot be written: No space left on device" in err
    assert (tmp_path / "t.md").exists() and not (tmp_path / "t.partial").exists()


def test_two_evaluations_of_one_name(tmp_path):
    """The later one has the file; the other neither writes into it nor removes it."""
    path, found = tmp_path / "j", Found([Record("m", "l", "a", 0, {"psnr": 1.0}, 0.5)], {}, [])
    one, two = Journal(path, {"x": 1}), Journal(path, {"x": 2})
    one.add("a", found)
    two.add("b", found)
    one.add("c", found)
    one.remove()
    again = Journal(path, {"x": 2})
    assert [name for name in "abc" if again.get(name)] == ["b"] and not again.differs
    assert Journal(path, {"x": 1, "y": 3}).differs == ["x", "y"]
    two.add("c", found)
    two.remove()
    assert not path.exists() and one.error is two.error is None


@pytest.mark.parametrize("content", ["", "\n", "[]\n", "{\n", '{"name": "a", "records": []}\n'])
def test_files_that_are_no_journals(tmp_path, content):
    path = tmp_path / "j"
    path.write_text(content)
    journal = Journal(path, {"x": 1})
    assert len(journal) == 0 and "x" in journal.differs
    journal.remove()
    assert path.exists()  # nothing of it is ours


def test_a_journal_that_stays(tmp_path, photos, capsys, monkeypatch):
    def refuse(self):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(Journal, "remove", refuse)
    assert run("--sr", photos, "--gt", photos, "-o", tmp_path / "t") == 0
    assert "t.partial cannot be removed: Permission denied" in capsys.readouterr().err
    assert (tmp_path / "t.md").exists()


def test_digests(tmp_path, weights):
    a, b = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    assert network_digest(a) != network_digest(b)
    b.load_state_dict(a.state_dict())
    assert network_digest(a) == network_digest(b)
    assert network_digest(a.half()) != network_digest(b)
    before = file_digest([weights, tmp_path / "none"])
    assert before == file_digest([weights, tmp_path / "none"])
    assert before != file_digest([tmp_path / "none", weights])
    (tmp_path / "none").write_text("")
    assert before != file_digest([weights, tmp_path / "none"])
    assert source_digest() == source_digest()


def test_names_that_are_no_text(tmp_path):
    name, scored = "\udcff/ä", {"psnr": float("inf"), "ssim": float("nan")}
    journal = Journal(tmp_path / "j", {"x": 1})
    journal.add(name, Found([Record("m", "l", name, 0, scored, 0.5)], {}, []))
    assert journal.error is None
    for line in (tmp_path / "j").read_text().splitlines():
        json.loads(line)
    again = Journal(tmp_path / "j", {"x": 1}).get(name)
    assert repr(again.records) == repr(journal.get(name).records)
    assert len(Journal(tmp_path / "j", {"x": 2})) == 0
