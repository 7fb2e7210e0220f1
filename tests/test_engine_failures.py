"""Runs that fail, are cut off or are changed: what stays behind, and what is said."""

import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

from dasr_ops.models import CheckpointError, SRResNet, load_dasr, read_metadata, read_state_dict
from dasr_ops.train.config_files import load_config
from dasr_ops.train.engine import processes as processes_module
from dasr_ops.train.engine import train
from dasr_ops.train.engine import trainer as trainer_module
from dasr_ops.train.engine.learner import Learner
from dasr_ops.train.engine.lock import locked
from dasr_ops.train.engine.trainer import Trainer

from .training_tools import newest, photographs, tiny


def small_files(function):
    """Let a function write files of at most 20 kB, as if the disk were full."""

    def limited(*args):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            return function(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            signal.signal(signal.SIGXFSZ, before)

    return limited


@pytest.mark.parametrize(
    ("kind", "file"), [("dasr", "dasr.safetensors"), ("srresnet", "srresnet.pth")]
)
def test_networks_that_a_full_disk_refused_are_written_later(
    tmp_path, monkeypatch, capsys, kind, file
):
    config = tiny(tmp_path, network__kind=kind, schedule__iterations=3)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "export", small_files(trainer_module.export))
        assert train(config) == 1
    output = capsys.readouterr().err
    assert "the networks of step 2 were not written: " in output and "Traceback" not in output
    assert newest(config)["step"] == 3
    assert not [path.name for path in config.run.iterdir() if path.suffix in (".tmp", ".pth")]
    assert train(config) == 0  # a kill between the last checkpoint and the networks is the same
    assert "nothing to do" in capsys.readouterr().err
    found = read_state_dict(config.run / file)
    averages = newest(config)["learner"]["average"]
    if kind == "dasr":
        assert read_metadata(config.run / file)["step"] == "3"
        assert all(torch.equal(averages[f"network.{n}"], value) for n, value in found.items())
    assert (config.run / "discriminator.pth").exists()


def test_a_checkpoint_is_written_before_a_validation_that_fails(tmp_path, monkeypatch):
    def fail(self, step):
        raise RuntimeError("validation")

    monkeypatch.setattr(Trainer, "_validate", fail)
    config = tiny(tmp_path, validation__every=4, checkpoint__every=4)
    with pytest.raises(RuntimeError, match="validation"):
        train(config)
    assert newest(config)["step"] == 4
    assert "error: validation" in (config.run / "train.log").read_text()


def test_a_broken_state_replaces_neither_networks_nor_checkpoints(tmp_path, capsys):
    config = tiny(tmp_path, schedule__iterations=2, checkpoint__keep=1)
    assert train(config) == 0
    config.schedule.iterations, config.checkpoint.every = 8, 1000
    config.optimizer.lr, config.checkpoint.allow_changes = 1e25, True
    assert train(config) == 1
    assert newest(config)["step"] > 2
    assert (config.run / "checkpoints" / "step_00000002.pt").exists()
    assert read_metadata(config.run / "dasr.safetensors")["step"] == "2"
    # It fails at once again, and what was saved stays as it was.
    failed = newest(config)
    assert train(config) == 1
    assert newest(config)["stream"]["pool"]["exchanges"] == failed["stream"]["pool"]["exchanges"]


def test_the_reason_of_a_failure_is_in_the_log(tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path, data__pool_size=0)

    def gradients(self, parts, step):
        for picture in (tmp_path / "pictures").iterdir():
            picture.unlink()
        return take(self, parts, step)

    take = Trainer._gradients
    monkeypatch.setattr(Trainer, "_gradients", gradients)
    config.data.cache_bytes = 0
    assert train(config) == 1
    reason = "error: data.train: none of the 3 pictures can be used"
    assert capsys.readouterr().err.count(reason) == 1
    assert (config.run / "train.log").read_text().count(reason) == 1


def test_accepted_changes_of_the_optimizer_count(tmp_path, capsys):
    config = tiny(tmp_path, schedule__iterations=2)
    assert train(config) == 0
    config.schedule.iterations, config.checkpoint.allow_changes = 4, True
    config.optimizer.weight_decay, config.optimizer.betas = 0.25, (0.5, 0.75)
    config.optimizer.options = {"eps": 1e-3}
    assert train(config) == 0
    for name in ("optimizer", "discriminator_optimizer"):
        state = newest(config)["learner"][name]
        (group,) = state["param_groups"]
        assert (group["weight_decay"], group["eps"]) == (0.25, 1e-3)
        assert tuple(group["betas"]) == (0.5, 0.75)
        assert all(float(kept["step"]) == 4 for kept in state["state"].values())
    # What another one has gathered means nothing to it: it begins anew.
    config.schedule.iterations, config.optimizer.name = 6, "SGD"
    config.optimizer.options = {"momentum": 0.9}
    assert train(config) == 0
    assert "begin anew" in (config.run / "train.log").read_text()
    config.schedule.iterations, config.optimizer.name = 8, "Adam"
    config.optimizer.options = {}
    assert train(config) == 0
    state = newest(config)["learner"]["optimizer"]["state"]
    assert all(float(kept["step"]) == 2 for kept in state.values())


def test_float16_gradients_that_never_fit_end_the_run(tmp_path, monkeypatch, capsys):
    """Some overflow is usual, and its steps are left out; forever, nothing would be learnt."""
    restorer_part, calls = Learner._restorer_part, []

    def overflow(self, *args):
        result = restorer_part(self, *args)
        calls.append(self.scaler.get_scale())
        if len(calls) > broken:
            next(self.restorer.parameters()).grad.fill_(torch.inf)
        return result

    monkeypatch.setattr(Learner, "_restorer_part", overflow)
    broken = 2
    config = tiny(tmp_path, engine__precision="float16", schedule__iterations=100)
    config.engine.deterministic = False
    assert train(config) == 1
    assert "not finite in step" in capsys.readouterr().err
    assert 10 < len(calls) < 60
    assert newest(config)["step"] == len(calls) - 1


def test_a_run_that_cannot_start_leaves_no_process(tmp_path):
    config = tiny(tmp_path, data__workers=1, validation__pictures=tmp_path / "none")
    assert train(config) == 1
    assert not multiprocessing.active_children()


def test_files_that_a_kill_left_in_the_folder_are_removed(tmp_path):
    config = tiny(tmp_path, schedule__iterations=1)
    config.run.mkdir()
    (config.run / ".dasr-ops-0123.tmp").write_bytes(b"half")
    assert train(config) == 0
    assert not list(config.run.glob(".dasr-ops-*"))


TWO = """
    import os, sys
    from pathlib import Path
    from dasr_ops.train.engine import train
    from dasr_ops.train.engine.trainer import Trainer
    from tests.training_tools import tiny

    folder, first = Path(sys.argv[1]), os.environ["RANK"] == "0"
    config = tiny(folder, schedule__iterations=50)
    if not first:
        config.run = folder / "empty"
    assert train(config) == 1

    config = tiny(folder, schedule__iterations=50)
    take, calls = Trainer._next, []

    def fail(self, batches):
        calls.append(1)
        if not first and len(calls) == 3:
            skipped = self.stream._maker.samples.library.skipped
            skipped.update(dict.fromkeys(range(3), "gone"))
        return take(self, batches)

    Trainer._next = fail
    os.environ["MASTER_PORT"] = sys.argv[2]
    code = train(config)
    # A thread of the group's that outlives it may abort the program while the interpreter ends.
    threads = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), threads
    sys.exit(code)
"""


def two_processes(folder):
    """Run two processes as torchrun starts them; returns their exit codes and error outputs."""
    with socket.socket() as one, socket.socket() as other:
        for probe in (one, other):
            probe.bind(("127.0.0.1", 0))
        ports = [str(probe.getsockname()[1]) for probe in (one, other)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0]}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(TWO), folder, ports[1]],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank},
            cwd=Path(__file__).resolve().parents[1],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        outputs = [process.communicate(timeout=100)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], outputs


def test_processes_that_cannot_go_on_together_end(tmp_path):
    assert train(tiny(tmp_path, schedule__iterations=2)) == 0
    codes, (first, second) = two_processes(tmp_path)
    assert codes == [1, 1], first + second
    for output, step in ((first, 2), (second, 0)):
        assert f"do not see the same checkpoints, this one that of step {step}" in output
    # Then one that finds no picture any more.
    assert "error: data.train: none of the 3 pictures can be used" in second
    assert "error: another process of the run has ended" in first
    assert "Traceback" not in first + second and "Warning" not in first + second
    assert "another process of the run has ended" in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize(("library", "left"), [("nccl", ["abort"]), ("gloo", ["destroy"])])
def test_a_failing_process_waits_for_no_other(monkeypatch, library, left):
    """With nccl the usual way of leaving waits for what was begun together."""
    done = []
    dist = processes_module.dist
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_backend", lambda: library)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("destroy"))
    abort = lambda: done.append("abort")  # noqa: E731
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", abort)
    with pytest.raises(KeyError), processes_module.processes("cpu"):
        raise KeyError
    assert done == left
    with processes_module.processes("cpu"):
        pass
    assert done == [*left, "destroy"]


def test_networks_are_written_where_a_checkpoint_finds_no_room(tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path, schedule__iterations=2)

    def full(self, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer_module.Checkpoints, "save", full)
    assert train(config) == 1
    output = capsys.readouterr().err
    assert "error: at the end, step 2, not everything could be written" in output
    assert "no checkpoint" in output and "dasr.safetensors" in output
    assert read_metadata(config.run / "dasr.safetensors")["step"] == "2"


def test_accepted_changes_are_named_and_not_accepted_for_good(tmp_path, capsys):
    assert train(tiny(tmp_path, schedule__iterations=2)) == 0
    assert "finished at step 2: " in capsys.readouterr().err
    changed = tiny(tmp_path, schedule__iterations=4, optimizer__lr=2e-3)
    changed.checkpoint.allow_changes = True
    assert train(changed) == 0
    assert "optimizer.lr was 0.001, is 0.002" in (changed.run / "train.log").read_text()
    again = load_config(changed.run)
    assert not again.checkpoint.allow_changes
    again.seed = 4
    assert train(again) == 1


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path, capsys):
    config = tiny(tmp_path, schedule__iterations=2)
    config.run.mkdir()
    theirs = config.run / ".dasr-ops-0123.tmp"
    theirs.write_bytes(b"what the other run is writing")
    with locked(config.run):
        assert train(config) == 1
    assert theirs.exists() and not (config.run / "config.yml").exists()
    assert "is in use by another training run" in capsys.readouterr().err
    assert train(config) == 0


def test_validation_pictures_left_out_are_in_the_log(tmp_path):
    config = tiny(tmp_path, schedule__iterations=1)
    photographs(tmp_path / "val", count=1)
    (tmp_path / "val" / "broken.png").write_bytes(b"\x89PNG")
    config.validation.pictures = tmp_path / "val"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(config) == 0
    assert "validation at step 1, clean: PSNR-Y" in (config.run / "train.log").read_text()


def test_a_run_that_is_longer_than_asked_for_keeps_its_step(tmp_path, capsys):
    config = tiny(tmp_path, schedule__iterations=4, validation__every=3)
    assert train(config) == 0
    config.validation.pictures = photographs(tmp_path / "val", count=1)
    config.schedule.iterations = 2
    (config.run / "dasr.safetensors").unlink()
    assert train(config) == 0
    assert "at step 4 of 2: nothing to do" in capsys.readouterr().err
    assert read_metadata(config.run / "dasr.safetensors")["step"] == "4"
    assert not (config.run / "validation.csv").exists()  # none was due


def test_networks_come_before_a_validation_that_was_missed(tmp_path, monkeypatch):
    config = tiny(tmp_path, schedule__iterations=2)
    assert train(config) == 0
    config.validation.pictures = photographs(tmp_path / "val", count=1)
    (config.run / "dasr.safetensors").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate", lambda self, step: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    assert (config.run / "dasr.safetensors").exists()


class Killed(BaseException):
    """Ends a run without a word."""


@pytest.mark.parametrize("step", [2, 4])  # in the middle, at the end
def test_a_validation_that_a_kill_cut_off_is_made_later(tmp_path, monkeypatch, step):
    config = tiny(tmp_path, schedule__iterations=4, validation__every=2)
    config.validation.pictures = photographs(tmp_path / "val", count=1)
    whole = tiny(tmp_path, run=tmp_path / "whole", schedule__iterations=4, validation__every=2)
    whole.validation.pictures = config.validation.pictures
    assert train(whole) == 0

    real = Trainer._validate

    def killed(self, done):
        if done == step:
            raise Killed
        real(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate", killed)
        with pytest.raises(Killed):
            train(config)
    assert newest(config)["step"] == step
    for _ in range(2):  # once made it is not made again
        assert train(config) == 0
        rows = [
            [line.split(",")[1:] for line in (run / "validation.csv").read_text().splitlines()]
            for run in (config.run, whole.run)
        ]
        assert rows[0] == rows[1] and len(rows[0]) > 2


def test_a_run_that_is_asked_to_stop_where_a_validation_is_due(tmp_path, monkeypatch):
    config = tiny(tmp_path, schedule__iterations=4, validation__every=2)
    config.validation.pictures = photographs(tmp_path / "val", count=1)
    real = Learner.update

    def update(self, step):
        real(self, step)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", update)
        train(config)
    assert train(config) == 0
    lines = (config.run / "validation.csv").read_text().splitlines()[1:]
    assert {line.split(",")[1] for line in lines} == {"2", "4"}


def test_optimizers_that_need_more_than_was_gathered_begin_anew(tmp_path):
    assert train(tiny(tmp_path, schedule__iterations=2)) == 0
    more = tiny(tmp_path, schedule__iterations=4, optimizer__options={"amsgrad": 1.0})
    more.checkpoint.allow_changes = True
    assert train(more) == 0
    said = (more.run / "train.log").read_text()
    assert "optimizer.options ask for what the run has not gathered: optimisers begin anew" in said
    finer = tiny(tmp_path, schedule__iterations=6, optimizer__options={"amsgrad": 1, "eps": 1e-6})
    finer.checkpoint.allow_changes = True
    assert train(finer) == 0
    assert (more.run / "train.log").read_text().count("optimisers begin anew") == 1


def test_files_of_other_kinds_are_called_by_their_names(tmp_path, capsys):
    config = tiny(tmp_path, schedule__iterations=2)
    assert train(config) == 0
    (checkpoint,) = (config.run / "checkpoints").glob("*.pt")
    other = tiny(tmp_path, run=tmp_path / "other", start__weights=(checkpoint,))
    assert train(other) == 1
    assert "this is a checkpoint to go on from" in capsys.readouterr().err
    torch.save(SRResNet(num_feat=8, num_block=2).state_dict(), tmp_path / "static.pth")
    with pytest.raises(CheckpointError, match="expected a DASR, found a static SRResNet"):
        load_dasr(tmp_path / "static.pth")
