"""Whole runs: to the end, killed and resumed, failing, in two processes."""

import csv
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dasr_ops.models import (
    Degradation_Predictor,
    MSRResNetDynamic,
    SRResNet,
    UNetDiscriminatorSN,
    load_dasr,
    load_srresnet,
    read_state_dict,
    save_dasr,
)
from dasr_ops.train.config import LevelWeights
from dasr_ops.train.config_files import save_config
from dasr_ops.train.config_losses import PerceptualLossConfig
from dasr_ops.train.degradations import mix_vectors
from dasr_ops.train.engine import checkpoints as checkpoints_module
from dasr_ops.train.engine import train
from dasr_ops.train.engine.learner import Learner
from dasr_ops.train.engine.networks import build_restorer
from dasr_ops.train.engine.processes import Processes
from dasr_ops.train.losses import perceptual as perceptual_module

from .training_tools import assert_same, newest, tensors, tiny

ROOT = Path(__file__).resolve().parents[1]


def weights(config):
    return {k: v for k, v in tensors(newest(config)).items() if k.startswith("/learner/restorer")}


def rows(config):
    with open(config.run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_from_start_to_end(tmp_path):
    config = tiny(tmp_path, log__images_every=3)
    assert train(config) == 0
    model = load_dasr(config.run / "dasr.safetensors")
    assert model(torch.rand(1, 3, 20, 24)).shape == (1, 3, 80, 96)
    average = {k: v for k, v in tensors(newest(config)).items() if k.startswith("/learner/average")}
    for name, value in model.state_dict().items():
        assert torch.equal(value, average[f"/learner/average/network.{name}"]), name
    judge = UNetDiscriminatorSN(num_feat=4)
    judge.load_state_dict(read_state_dict(config.run / "discriminator.pth"))
    log = rows(config)
    assert [int(row["step"]) for row in log] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "pixel", "vector", "adversarial", "discriminator", "norm", "lr"):
        assert float(log[-1][name]) == float(log[-1][name]), name
    assert (config.run / "config.yml").is_file()
    assert list((config.run / "pictures").iterdir())
    assert train(config) == 0  # nothing is left to do


def test_every_part_learns(tmp_path):
    config = tiny(tmp_path)
    assert train(config) == 0
    fresh = build_restorer(config).state_dict()
    for name, value in newest(config)["learner"]["restorer"].items():
        assert not torch.equal(value, fresh[name]), name
    judge = newest(config)["learner"]["discriminator"]
    again = Learner(config, Processes(0, 1, torch.device("cpu"))).discriminator.state_dict()
    for name, value in judge.items():
        assert not torch.equal(value, again[name]), name


def test_experts_part(tmp_path):
    """All start as copies of one static network: identical experts must not stay so."""
    torch.manual_seed(3)
    static = SRResNet(num_feat=8, num_block=2)
    torch.save(static.state_dict(), tmp_path / "static.pth")
    config = tiny(tmp_path, start__weights=(tmp_path / "static.pth",))
    restorer = build_restorer(config)
    x = torch.rand(2, 3, 12, 12)
    # Mixing weights sum to 1 to rounding; each layer then adds a few roundings of its own.
    torch.testing.assert_close(restorer(x)[0], static(x), rtol=0, atol=2e-5)
    assert train(config) == 0
    for name, value in newest(config)["learner"]["restorer"].items():
        if "net_g" in name and name.endswith("weight"):
            assert not torch.equal(value[0], value[1]), name


def test_the_static_network_is_trained_and_saved_as_one(tmp_path):
    config = tiny(tmp_path, network__kind="srresnet", loss__gan__weight=0.0)
    assert train(config) == 0
    static = load_srresnet(config.run / "srresnet.pth")
    x = torch.rand(1, 3, 16, 16)
    state = newest(config)["learner"]["average"]
    restorer = build_restorer(config)
    restorer.load_state_dict(state)
    torch.testing.assert_close(static(x), restorer(x)[0], rtol=0, atol=2e-5)
    next_stage = tiny(tmp_path, run=tmp_path / "next")
    next_stage.start.weights = (config.run / "srresnet.pth",)
    assert train(next_stage) == 0


def test_p_learns_alone_where_no_picture_is_compared(tmp_path, monkeypatch):
    config = tiny(tmp_path, loss__gan__weight=0.0, loss__pixel__weight=0.0, log__images_every=2)
    before = {f"/learner/restorer/{k}": w for k, w in build_restorer(config).state_dict().items()}
    with monkeypatch.context() as patched:
        patched.setattr(MSRResNetDynamic, "forward", None)  # G is not run
        assert train(config) == 0
    assert not list(config.run.rglob("*.png"))
    after = weights(config)
    assert before.keys() == after.keys()
    for name in before:
        changed = not torch.equal(before[name], after[name])
        assert changed == ("net_p.ConvNet" in name), name
    next_stage = tiny(tmp_path, run=tmp_path / "next")
    next_stage.start.weights = (config.run / "dasr.safetensors",)
    assert train(next_stage) == 0


def test_p_begins_with_the_mean_of_the_vectors_it_will_see(tmp_path):
    config = tiny(tmp_path)
    config.degradation.levels = LevelWeights(weak=0, standard=0, severe=1)
    found = build_restorer(config).network.net_p.ConvNet[-1].bias
    expected = mix_vectors({"severe": 1.0}).mean(0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_narrow_types(tmp_path, precision):
    config = tiny(tmp_path, engine__precision=precision, engine__deterministic=False)
    assert train(config) == 0
    assert all(
        torch.isfinite(w).all() and w.dtype == torch.float32 for w in weights(config).values()
    )


def test_perceptual_and_style_loss_take_part(tmp_path, monkeypatch):
    shapes = {"conv1_1": (64, 3), "conv1_2": (64, 64), "conv2_1": (128, 64), "conv2_2": (128, 128)}
    weights = {}
    for name, (outs, ins) in shapes.items():
        weights[f"{name}.weight"] = torch.randn(outs, ins, 3, 3) / (3 * ins**0.5)
        weights[f"{name}.bias"] = torch.zeros(outs)
    monkeypatch.setattr(perceptual_module, "load_weights", lambda *_: weights)
    layers = {"conv1_2": 1.0, "conv2_2": 1.0}
    perceptual = PerceptualLossConfig(style_weight=10.0, layers=layers)
    config = tiny(tmp_path, loss__perceptual=perceptual, schedule__iterations=2)
    assert train(config) == 0
    assert float(rows(config)[-1]["perceptual"]) > 0 and float(rows(config)[-1]["style"]) > 0
    assert not any("conv1_2" in name for name in tensors(newest(config)))


def test_g_is_told_true_vectors_as_often_as_asked_for(tmp_path, monkeypatch):
    mix, told = Degradation_Predictor.mix, []
    monkeypatch.setattr(
        Degradation_Predictor, "mix", lambda self, v: told.append(v) or mix(self, v)
    )
    config = tiny(tmp_path, loss__true_vector=0.15, engine__accumulate=2, schedule__iterations=10)
    assert train(config) == 0
    assert sum(map(len, told)) == 6  # of 10 steps of 2 parts of 2

    restorer = build_restorer(config)
    lr, v = torch.rand(3, 3, 12, 12), torch.rand(3, 33)
    network = restorer.network
    weights = network.net_p(lr).weights.clone()
    weights[:2] = mix(network.net_p, v[:2])
    sr, predicted = restorer(lr, v[:2])
    torch.testing.assert_close(sr, network.net_g(lr, weights))
    torch.testing.assert_close(predicted, network.net_p(lr).v)


def test_recomputing_changes_nothing(tmp_path):
    plain = tiny(tmp_path, schedule__iterations=2)
    again = tiny(tmp_path, schedule__iterations=2, engine__recompute=True, run=tmp_path / "again")
    assert train(plain) == train(again) == 0
    assert_same(weights(plain), weights(again))


def command(config):
    return [sys.executable, "-m", "dasr_ops", "train", str(config.run.parent / "config.yml")]


def start(config, prefix=()):
    save_config(config, config.run.parent / "config.yml")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*prefix, *(command(config) if not prefix else command(config)[1:])],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(config, step, process):
    """Wait until the log of a run has reached a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        try:
            if rows(config) and int(rows(config)[-1]["step"]) >= step:
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.02)
    raise AssertionError("the run did not come far enough")


LONG = {"schedule__iterations": 60, "checkpoint__every": 7, "data__workers": 1}


def test_killed_and_resumed_runs_end_in_the_same_bits(tmp_path):
    config = tiny(tmp_path, **LONG)
    whole = tiny(tmp_path, **LONG, run=tmp_path / "whole")
    assert train(whole) == 0
    for step in (9, 30):
        process = start(config)
        wait_for_step(config, step, process)
        process.kill()
        process.communicate()
        assert newest(config)["step"] < 60
    assert train(config) == 0
    assert_same(newest(whole), newest(config))
    # The log, too, is that of one run.
    assert [int(row["step"]) for row in rows(config)] == list(range(1, 61))
    assert [row["loss"] for row in rows(config)] == [row["loss"] for row in rows(whole)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_request_to_stop_saves_and_leaves(tmp_path, number, code):
    config = tiny(tmp_path, **{**LONG, "checkpoint__every": 1000, "schedule__iterations": 5000})
    process = start(config)
    wait_for_step(config, 3, process)
    os.killpg(process.pid, number)  # as a terminal does: the loader's processes get it as well
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "Traceback" not in output
    step = newest(config)["step"]
    assert f"stopped at step {step}" in output
    assert int(rows(config)[-1]["step"]) == step


@pytest.mark.parametrize("alone", [False, True], ids=["all", "P alone"])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, alone):
    sizes = {"data__pool_size": 0, "schedule__iterations": 3}
    if alone:
        sizes |= {"loss__pixel__weight": 0.0, "loss__gan__weight": 0.0}
    one = tiny(tmp_path, **sizes, data__batch_size=4, run=tmp_path / "one")
    assert train(one) == 0
    two = tiny(tmp_path, **sizes, data__batch_size=2, engine__accumulate=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    process = start(two, [*launcher, f"--master_port={port}"])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    compare_steps(one, two)
    assert newest(two)["step"] == 3 and (two.run / "checkpoints/step_00000003.rank1.pt").exists()


def compare_steps(one, two):
    """Equal sums in another order: Adam's first steps amplify rounding where gradients are 0."""
    a, b = weights(one), weights(two)
    for name in a:
        error = (a[name] - b[name]).norm() / a[name].norm().clamp(min=1e-3)
        assert error < 1e-3, (name, error.item())
    losses = [name for name in ("pixel", "vector") if name in rows(one)[0]]
    for name in losses:
        expected = [float(row[name]) for row in rows(two)]
        assert [float(row[name]) for row in rows(one)] == pytest.approx(expected, rel=1e-4)


def test_accumulated_parts_equal_one_batch(tmp_path):
    sizes = {"data__pool_size": 0, "schedule__iterations": 3}
    one = tiny(tmp_path, **sizes, data__batch_size=4, run=tmp_path / "one")
    two = tiny(tmp_path, **sizes, data__batch_size=2, engine__accumulate=2)
    assert train(one) == train(two) == 0
    compare_steps(one, two)


def test_not_a_number_ends_the_run_with_a_saved_state(tmp_path, capsys):
    config = tiny(tmp_path, optimizer__lr=1e25, schedule__warmup=0, checkpoint__every=1000)
    assert train(config) == 1
    message = capsys.readouterr().err
    assert "not finite in step" in message and "optimizer.lr" in message
    assert newest(config)["step"] >= 1
    (failure,) = config.run.glob("failure_step_*.pt")
    saved = torch.load(failure, weights_only=True)
    assert saved["batches"][0]["lr"].dtype == torch.uint8
    assert saved["step"] == newest(config)["step"]


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    config = tiny(tmp_path, checkpoint__keep=3)
    write = checkpoints_module.Checkpoints.save

    def full(self, step, state, rank=0):
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, step, state, rank)

    monkeypatch.setattr(checkpoints_module.Checkpoints, "save", full)
    assert train(config) == 0
    output = "".join(capsys.readouterr())
    assert "the checkpoint of step 4 was not written" in output
    assert "that of step 2 is kept" in output
    steps = sorted(path.name for path in (config.run / "checkpoints").iterdir())
    assert steps == ["step_00000002.pt", "step_00000006.pt"]


def test_a_run_that_could_not_be_saved_fails(tmp_path, monkeypatch, capsys):
    def full(self, step, state, rank=0):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints_module.Checkpoints, "save", full)
    assert train(tiny(tmp_path, schedule__iterations=2)) == 1
    assert "there is no older one" in "".join(capsys.readouterr())


def test_other_settings_are_refused_unless_accepted(tmp_path, capsys):
    assert train(tiny(tmp_path, schedule__iterations=2)) == 0
    longer = tiny(tmp_path, schedule__iterations=4, log__every=2, data__workers=1)
    assert train(longer) == 0
    other = tiny(tmp_path, schedule__iterations=6, optimizer__lr=1e-4)
    assert train(other) == 1
    message = capsys.readouterr().err
    assert (
        "optimizer.lr was 0.001, is 0.0001" in message and "--checkpoint.allow-changes" in message
    )
    other.checkpoint.allow_changes = True
    assert train(other) == 0
    wider = tiny(tmp_path, schedule__iterations=8, network__num_feat=16)
    wider.checkpoint.allow_changes = True
    assert train(wider) == 1
    assert "does not fit the settings" in capsys.readouterr().err


def test_checkpoints_of_former_versions_go_on(tmp_path):
    config = tiny(tmp_path, schedule__iterations=2)
    assert train(config) == 0
    state = newest(config)
    del state["config"]["loss"]["regression"]["criterion"], state["learner"]["anew"]
    torch.save(state, config.run / "checkpoints" / "step_00000002.pt")
    assert train(tiny(tmp_path, schedule__iterations=3)) == 0
    assert newest(config)["step"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__train": ()}, "data.train: expected at least one folder"),
        ({"data__train": (Path("nowhere"),)}, "error: data.train: .*nowhere"),
        ({"start__weights": (Path("nowhere.pth"),)}, "start.weights: .*nowhere.pth"),
        ({"optimizer__name": "Adm"}, "optimizer.name: expected one of .*Adam"),
        ({"engine__device": "cuda:99"}, "engine.device: "),
        (
            {"loss__perceptual__weight": 1.0, "loss__perceptual__weights": Path("nowhere.pth")},
            "loss.perceptual: .*nowhere.pth",
        ),
    ],
)
def test_what_cannot_start_says_why(tmp_path, capsys, changes, message):

    assert train(tiny(tmp_path, **changes)) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_sizes_that_differ_from_the_file_are_named(tmp_path, capsys):
    torch.save(SRResNet(num_feat=12, num_block=2).state_dict(), tmp_path / "static.pth")
    config = tiny(tmp_path, start__weights=(tmp_path / "static.pth",))
    assert train(config) == 1
    assert "expected network.num_feat = 8 as in the settings, got 12" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_pictures_are_counted_and_passed_over(tmp_path, workers):
    config = tiny(tmp_path, data__workers=workers)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert train(config) == 0
    log = (config.run / "train.log").read_text()
    assert log.count("broken.png is left out") == 1
    assert "1 of 4 pictures could not be used" in log


def test_a_folder_of_corrupt_pictures_ends_the_run(tmp_path, capsys):
    config = tiny(tmp_path)
    for picture in (tmp_path / "pictures").iterdir():
        picture.write_bytes(picture.read_bytes()[:40])
    assert train(config) == 1
    assert "error: data.train:" in capsys.readouterr().err


def test_the_official_pair_can_be_tuned_further(tmp_path):
    config = tiny(tmp_path)
    assert train(config) == 0
    model = load_dasr(config.run / "dasr.safetensors")
    pair = (tmp_path / "net_g.pth", tmp_path / "net_p.pth")
    save_dasr(model, *pair)
    for weights in (pair, pair[::-1], (config.run / "dasr.safetensors",)):
        tuned = tiny(tmp_path, start__weights=weights)
        for name, value in build_restorer(tuned).network.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
    tuned = tiny(tmp_path, run=tmp_path / "tuned", start__weights=pair)
    tuned.start.discriminator = config.run / "discriminator.pth"
    assert train(tuned) == 0
    for path in pair:
        path.unlink()  # a run that goes on does not need them
    tuned.schedule.iterations += 2
    assert train(tuned) == 0


@pytest.mark.slow
def test_compiled_networks(tmp_path):
    config = tiny(tmp_path, engine__compile=True, schedule__iterations=2)
    plain = tiny(tmp_path, schedule__iterations=2, run=tmp_path / "plain")
    assert train(config) == train(plain) == 0
    compare_steps(plain, config)


def test_the_smoke_preset_learns_a_picture_by_heart(tmp_path):
    """As a user runs it, for half of its steps; it beats bicubic enlargement of that picture."""
    picture = ROOT / "docs" / "images" / "coffee_lr.png"
    run = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["smoke", "--data.train", picture, "--run", run, "--schedule.iterations", "300"]
    for argument in (["train", *arguments], ["eval", picture, "--levels", "clean"]):
        if argument[0] == "eval":
            argument += ["--weights", run / "dasr.safetensors", "-o", tmp_path / "scores"]
        done = subprocess.run(
            [sys.executable, "-m", "dasr_ops", *map(str, argument)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    table = (tmp_path / "scores.md").read_text()
    scores = dict(re.findall(r"^\| ([\w ,]+?) \| ([\d.]+) /", table, re.MULTILINE))
    assert float(scores["DASR"]) > float(scores["bicubic"]) + 0.3, table
