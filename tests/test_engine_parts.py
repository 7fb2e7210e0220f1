"""The parts of the training engine that need neither data nor a loop."""

import errno
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dasr_ops.models import load_dasr
from dasr_ops.train.config import OptimizerConfig, ScheduleConfig
from dasr_ops.train.config_checks import optimizer_names
from dasr_ops.train.engine.averaging import Average
from dasr_ops.train.engine.checkpoints import Checkpoints, read
from dasr_ops.train.engine.errors import TrainingError
from dasr_ops.train.engine.interruption import Interruption, interruption
from dasr_ops.train.engine.networks import build_restorer, export
from dasr_ops.train.engine.optimizers import build_optimizer, fits
from dasr_ops.train.engine.processes import choose_device
from dasr_ops.train.engine.schedules import factor

from .training_tools import tiny


def test_multistep_halves_at_each_milestone():
    config = ScheduleConfig(iterations=100, kind="multistep", milestones=(10, 20), gamma=0.5)
    assert [factor(config, step) for step in (0, 9, 10, 19, 20, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_cosine_rises_linearly_then_falls_to_its_end():
    config = ScheduleConfig(iterations=110, kind="cosine", warmup=10, final=0.1)
    assert [factor(config, step) for step in (0, 4, 9)] == [1 / 11, 5 / 11, 10 / 11]
    assert factor(config, 10) == 1
    assert factor(config, 60) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor(config, 109) == pytest.approx(0.1, abs=1e-3)
    assert factor(config, 10_000) == pytest.approx(0.1)  # a run that was made longer and cut again


def test_warmup_holds_for_every_kind():
    for kind in ("multistep", "constant"):
        config = ScheduleConfig(iterations=10, kind=kind, warmup=3, milestones=())
        assert [factor(config, s) for s in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert factor(ScheduleConfig(iterations=1, kind="cosine"), 0) == 1


def test_average_follows_the_formula():
    network = nn.Linear(3, 2)
    average = Average(network, 0.9)
    expected = [p.detach().double() for p in network.parameters()]
    for step in range(200):
        with torch.no_grad():
            for p in network.parameters():
                p.normal_()
        average.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * p.detach().double()
            for e, p in zip(expected, network.parameters(), strict=True)
        ]
    for value, e in zip(average.network.parameters(), expected, strict=True):
        # Each step rounds once: the errors of a geometric sum with ratio 0.9 add up to about 10.
        torch.testing.assert_close(value.double(), e, rtol=0, atol=20 * 2**-24 * 4)
        assert not value.requires_grad


def test_average_without_decay_is_the_network():
    network = nn.BatchNorm1d(3)
    average = Average(network, 0.0)
    network(torch.randn(4, 3))
    with torch.no_grad():
        network.weight.normal_()
    average.update(network, 5)
    for name, value in network.state_dict().items():
        assert torch.equal(average.network.state_dict()[name], value), name


def test_what_optimizers_have_gathered():
    def gathered(name, **options):
        config = OptimizerConfig(name=name, options=options)
        layer = nn.Linear(2, 3)
        layer.unused = nn.Parameter(torch.zeros(2))
        optimizer = build_optimizer(config, layer.parameters(), 0.1)
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return optimizer

    names = [name for name in optimizer_names() if name != "Muon"]  # which takes matrices alone
    for name in names:
        optimizer = gathered(name)
        assert fits(optimizer, optimizer.state_dict()), name
    state = gathered("RMSprop").state_dict()
    assert not fits(gathered("RMSprop", momentum=0.9), state)
    assert fits(gathered("RMSprop", alpha=0.9), state)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "NAdam", "Adafactor"])
def test_optimizers_by_name(name):
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(OptimizerConfig(name=name, lr=0.01), layer.parameters(), 0.01)
    assert type(optimizer) is getattr(torch.optim, name)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, layer.weight)


def test_options_reach_the_optimizer():
    config = OptimizerConfig(name="AdamW", weight_decay=0.1, options={"eps": 1e-6, "foreach": 0})
    group = build_optimizer(config, nn.Linear(2, 2).parameters(), 1e-3).param_groups[0]
    assert (group["eps"], group["foreach"], group["weight_decay"]) == (1e-6, 0, 0.1)
    assert group["betas"] == (0.9, 0.99) and group["lr"] == 1e-3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimizerConfig(name="adamm"), "optimizer.name: expected one of .*Adam.*got 'adamm'"),
        (OptimizerConfig(name="Optimizer"), "optimizer.name"),
        (OptimizerConfig(name="LBFGS"), "optimizer.name"),
        (OptimizerConfig(name="SparseAdam"), "optimizer.name"),
        (OptimizerConfig(options={"epz": 1}), "Adam has no option 'epz'; it has .*eps"),
        (OptimizerConfig(options={"eps": -1}), "optimizer: Adam: Invalid epsilon"),
    ],
)
def test_optimizer_errors(config, message):
    with pytest.raises(TrainingError, match=message):
        build_optimizer(config, nn.Linear(2, 2).parameters(), 0.1)


def test_device_errors():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(TrainingError, match=r"engine\.device: expected auto, cpu"):
        choose_device("gpu0")
    with pytest.raises(TrainingError, match=r"engine\.device: expected auto, cpu.*got 'meta'"):
        choose_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="cuda: no GPU"):
            choose_device("cuda")
        assert choose_device("auto") == torch.device("cpu")


def state(value):
    return {"tensor": torch.full((1000,), float(value)), "number": value}


def store(folder, keep=2):
    warnings = []
    return Checkpoints(folder, keep, warnings.append), warnings


def test_checkpoints_round_trip_and_rotate(tmp_path):
    checkpoints, _ = store(tmp_path / "made")
    assert checkpoints.newest() is None
    for step in (5, 10, 20, 100_000_000):
        checkpoints.save(step, state(step), rank=1)
        checkpoints.save(step, state(step))
        checkpoints.prune(step)
    assert checkpoints.steps() == [100_000_000, 20]
    assert len(list((tmp_path / "made").iterdir())) == 4
    newest = checkpoints.newest()
    assert newest["step"] == newest["number"] == 100_000_000
    assert torch.equal(checkpoints.part(20, 1)["tensor"], state(20)["tensor"])
    assert checkpoints.part(20, 2) is None


def flip(data):
    data[len(data) // 2] ^= 1


def cut(data):
    del data[len(data) // 2 :]


def empty(data):
    data.clear()


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, damage):
    checkpoints, warnings = store(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    data = bytearray(checkpoints.path(2).read_bytes())
    damage(data)
    checkpoints.path(2).write_bytes(data)
    assert checkpoints.newest()["number"] == 1
    assert len(warnings) == 1 and "step_00000002.pt cannot be used" in warnings[0]
    checkpoints.path(1).write_bytes(data)
    with pytest.raises(TrainingError, match="none of the 2 checkpoints can be used"):
        checkpoints.newest()


def test_any_damaged_byte_is_noticed_or_harmless(tmp_path):
    """Directories of archives too, where zipfile, zlib and pickle raise what they like."""
    checkpoints, _ = store(tmp_path)
    checkpoints.save(1, {"tensor": torch.arange(8.0)})
    path = checkpoints.path(1)
    data, damaged = path.read_bytes(), 0
    for place in range(len(data)):
        flipped = data[place] ^ (1, 8)[place % 2]
        path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
        try:
            found = read(path)
        except (OSError, ValueError):
            damaged += 1
        else:
            assert found["step"] == 1 and torch.equal(found["tensor"], torch.arange(8.0))
    assert damaged > len(data) / 2


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path, keep):
    checkpoints, _ = store(tmp_path, keep)
    checkpoints.save(6, state(6))
    checkpoints.save(8, state(8), rank=1)
    checkpoints.save(8, state(8))
    checkpoints.path(8).write_bytes(b"")
    # The run went on from 6, and was asked to stop before it came to 8 again.
    checkpoints.save(7, state(7))
    checkpoints.prune(7)
    assert checkpoints.newest()["step"] == 7
    assert not checkpoints.path(8, rank=1).exists()
    assert checkpoints.steps() == [7, 6][:keep]


def test_a_file_of_another_kind_is_no_checkpoint(tmp_path):
    torch.save({"params": {}}, tmp_path / "step_00000001.pt")
    with pytest.raises(ValueError, match="not a checkpoint of format"):
        read(tmp_path / "step_00000001.pt")


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    checkpoints, _ = store(tmp_path)
    (tmp_path / ".dasr-ops-0123.tmp").write_bytes(b"half")
    checkpoints.save(1, state(1))
    checkpoints.prune(1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    """In a process of its own, whose files may not grow beyond 100 kB."""
    script = """
        import errno, resource, signal, sys, torch
        from pathlib import Path
        from dasr_ops.train.engine.checkpoints import Checkpoints
        checkpoints = Checkpoints(Path(sys.argv[1]), 1, print)
        checkpoints.save(1, {"small": torch.zeros(10)})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoints.save(2, {"large": torch.zeros(100_000)})
        except OSError as error:
            assert error.errno == errno.EFBIG, error
            print("refused")
        assert checkpoints.newest()["step"] == 1
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path], capture_output=True, text=True
    )
    assert done.stdout == "refused\n", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]


def test_a_failed_write_leaves_no_half_file(tmp_path, monkeypatch):
    checkpoints, _ = store(tmp_path)

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(1, state(1))
    assert list(tmp_path.iterdir()) == []


def test_a_signal_is_a_request_and_handlers_come_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with interruption() as asked:
        assert not asked.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.requested and asked.exit_code == 143
        os.kill(os.getpid(), signal.SIGINT)  # launchers repeat a request in another form
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_does_not_wait(monkeypatch):
    asked = Interruption()
    asked.request(signal.SIGINT)
    asked.request(signal.SIGINT)
    assert asked.exit_code == 130
    monkeypatch.setattr(asked, "_since", -math.inf)
    with pytest.raises(KeyboardInterrupt):
        asked.request(signal.SIGINT)


@pytest.mark.parametrize("scheme", ["unified", "official"])
def test_trained_networks_say_what_their_vectors_mean(tmp_path, scheme):
    config = tiny(tmp_path, degradation__labels=scheme)
    restorer = build_restorer(config)
    assert restorer.network.label_scheme == scheme
    (file,) = export(tmp_path, restorer, None, {"step": "0"})
    assert load_dasr(file).label_scheme == scheme


def test_schedule_is_a_function_of_its_settings():
    config = ScheduleConfig(iterations=10, kind="cosine")
    assert factor(replace(config, iterations=20), 10) == pytest.approx(0.5)
