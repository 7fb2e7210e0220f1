"""The batches of a run: the same whoever reads them, from any step on, whatever cannot be read."""

import io
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from PIL import Image

from dasr_ops.train.data import BatchStream
from dasr_ops.train.data import lmdb as maker
from dasr_ops.train.data.workers import pack, unpack

from .data_tools import CutSynthesis, damage, expected, make_config, make_folder, pixels, same, save


def take(count, config, **options):
    with BatchStream(config, CutSynthesis(), "cpu", **options) as stream:
        return list(itertools.islice(stream, count))


def all_same(batches, others):
    return len(batches) == len(others) and all(map(same, batches, others))


@pytest.mark.parametrize("synthesis", ["auto", "loader", "device"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_their_samples_whoever_makes_them(tmp_path, workers, synthesis):
    torch.set_num_threads(2)  # processes are forked from one that has used OpenMP
    torch.nn.functional.conv2d(torch.rand(4, 8, 64, 64), torch.rand(8, 8, 3, 3))
    config = make_config(make_folder(tmp_path, 4), workers=workers, synthesis=synthesis)
    batches = take(6, config)
    assert all_same(batches, [expected(config, range(3 * i, 3 * i + 3)) for i in range(6)])


def test_a_stream_starts_anywhere_and_ranks_share_the_samples(tmp_path):
    folder = make_folder(tmp_path, 5)
    config = make_config(folder, accumulate=2)
    whole = take(12, config)
    assert all_same(take(4, config, start=4), whole[8:])

    double = take(12, make_config(folder, accumulate=2, batch_size=6))
    parts = [take(12, config, rank=rank, world_size=2) for rank in (0, 1)]
    for batch, first, second in zip(double, *parts, strict=True):
        assert same(batch[:3], first) and same(batch[3:], second)
    assert all_same(take(2, config, start=5, rank=1, world_size=2), parts[1][10:])


def test_the_pool_is_resumed(tmp_path):
    config = make_config(make_folder(tmp_path, 5), pool_size=8, workers=1)
    with BatchStream(config, CutSynthesis(), "cpu") as stream:
        first = list(itertools.islice(stream, 7))
        buffer = io.BytesIO()
        torch.save(stream.state_dict(), buffer)
        rest = list(itertools.islice(stream, 5))
    plain = take(12, make_config(tmp_path, pool_size=0))
    assert all_same(first[:3], plain[:3])  # while it fills
    assert not any(map(same, first[3:] + rest, plain[3:]))
    buffer.seek(0)
    with BatchStream(config, CutSynthesis(), "cpu", start=7) as stream:
        stream.load_state_dict(torch.load(buffer, weights_only=True))
        assert all_same(list(itertools.islice(stream, 5)), rest)


def test_nothing_is_decoded_at_the_start_and_the_global_generator_is_left_alone(
    tmp_path, monkeypatch
):
    make_folder(tmp_path, 3)
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *a, **k: pytest.fail("decoded"))
        stream = BatchStream(make_config(tmp_path), CutSynthesis(), "cpu")
    take(2, make_config(tmp_path, workers=1))
    next(stream)
    assert torch.equal(state, torch.get_rng_state())
    assert stream.pictures == 3 and 0 < stream.wait_seconds < 60
    stream.close()
    stream.close()
    assert list(stream) == []


def skipping(caught):
    return sorted(str(w.message).split(": ")[0] for w in caught if "skipping" in str(w.message))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_told_once_by_the_first_rank(tmp_path, workers):
    make_folder(tmp_path, 6)
    damage(tmp_path / "03.png")
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    save(tmp_path / "small.png", pixels(0, 15, 40))
    (tmp_path / "list.txt").write_text("00.png\ngone.png\n")
    bad = [tmp_path / name for name in ("03.png", "bad.jpg", "gone.png", "small.png")]
    config = make_config(tmp_path, tmp_path / "list.txt", workers=workers, batch_size=12)
    for rank in (0, 1):
        with (
            warnings.catch_warnings(record=True) as caught,
            BatchStream(config, CutSynthesis(), "cpu", rank=rank, world_size=2) as stream,
        ):
            warnings.simplefilter("always")
            for _ in range(8):
                next(stream)
            assert sorted(stream.skipped) == bad
            assert stream.skipped[bad[3]] == "40x15 is below 16"
        assert skipping(caught) == ([f"skipping {path}" for path in bad] if rank == 0 else [])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_run_ends_when_no_picture_is_left(tmp_path, workers):
    for i in range(3):
        (tmp_path / f"{i}.png").write_text("nothing")
    with BatchStream(make_config(tmp_path, workers=workers), CutSynthesis(), "cpu") as stream:
        with pytest.raises(RuntimeError, match=r"data\.train: none of the 3 .*0\.png: not a pict"):
            next(stream)
        assert list(stream) == []


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.train: expected at least one"):
        BatchStream(make_config(), CutSynthesis(), "cpu")
    with pytest.raises(ValueError, match=r"data\.train: .*nowhere, which does not exist"):
        BatchStream(make_config(tmp_path / "nowhere"), CutSynthesis(), "cpu")
    make_folder(tmp_path, 1)
    with pytest.raises(ValueError, match=r"data\.pool_size: expected 0 or at least .* = 3, got 2"):
        BatchStream(make_config(tmp_path, pool_size=2), CutSynthesis(), "cpu")
    for name, options in (("start", {"start": -1}), ("rank", {"rank": 1})):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            BatchStream(make_config(tmp_path), CutSynthesis(), "cpu", **options)


def test_databases_are_read_after_a_fork(tmp_path):
    pytest.importorskip("lmdb")
    folder, output = make_folder(tmp_path / "pictures", 4), tmp_path / "set.lmdb"
    maker.make_database(maker.Config(folder, output, workers=0))
    wanted = take(4, make_config(folder))
    with BatchStream(make_config(output), CutSynthesis(), "cpu") as stream:
        assert same(next(stream), wanted[0])  # it is open here now
        assert all_same(take(4, make_config(output, workers=2)), wanted)


def test_what_goes_to_a_worker_can_be_pickled(tmp_path):
    config = make_config(make_folder(tmp_path, 3), synthesis="device")
    with BatchStream(config, CutSynthesis(), "cpu") as stream:
        copy = pickle.loads(pickle.dumps(stream._maker))
        assert torch.equal(copy[2].sources, stream._maker[2].sources)


def test_packed_tensors_are_plain_bytes():
    value = (
        torch.arange(6).view(2, 3).t(),
        torch.tensor(True),
        torch.ones(2, dtype=torch.bfloat16),
    )
    back = unpack(pack({"a": value}))["a"]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(value, back, strict=True))
    back[0].zero_()  # they can be written to
    assert torch.equal(value[0], torch.arange(6).view(2, 3).t())


def children():
    return {child.pid for child in multiprocessing.active_children()}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs the signals of Unix")
def test_signals_are_left_to_the_main_process_and_a_killed_worker_is_told(tmp_path):
    before = children()
    config = make_config(make_folder(tmp_path, 3), workers=2)
    stream = BatchStream(config, CutSynthesis(), "cpu")
    next(stream), next(stream)  # both have started
    workers = children() - before
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGTERM):
        for worker in workers:
            os.kill(worker, number)
    for _ in range(12):
        next(stream)
    os.kill(min(workers), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=rf"pid {min(workers)}\) .* SIGKILL: perhaps memory"):
        for _ in range(20):
            next(stream)
    assert children() == before


PROGRAM = """
import multiprocessing, os, sys
from pathlib import Path
import torch
from dasr_ops.train.data import BatchStream
from tests.data_tools import CutSynthesis, make_config

if __name__ == "__main__":
    if sys.argv[2] != "default":
        torch.multiprocessing.set_start_method(sys.argv[2])
    config = make_config(Path(sys.argv[1]), workers=2)
    stream = BatchStream(config, CutSynthesis(), "cpu")
    total = sum(float(next(stream).v.double().sum()) for _ in range(4))
    print(total, *(child.pid for child in multiprocessing.active_children()), flush=True)
    if sys.argv[3] == "wait":
        sys.stdin.read()
"""


def start(tmp_path, method, end):
    make_folder(tmp_path / "pictures", 3)
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    program = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "pictures"), method, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    total, *workers = program.stdout.readline().split()
    assert len(workers) == 2
    return program, float(total), [int(worker) for worker in workers]


def running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


METHODS = [
    "default",
    pytest.param("spawn", marks=pytest.mark.slow),
    pytest.param("forkserver", marks=pytest.mark.slow),
]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("method", METHODS)
def test_no_worker_outlives_a_killed_main_process(tmp_path, method):
    program, total, workers = start(tmp_path, method, "wait")
    config = make_config(tmp_path / "pictures")
    assert total == sum(float(batch.v.double().sum()) for batch in take(4, config))
    assert all(map(running, workers))
    program.kill()
    program.communicate()
    limit = time.monotonic() + 60
    while any(map(running, workers)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(map(running, workers))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["default", "spawn", "forkserver"])
def test_a_program_ends_that_does_not_close_its_stream(tmp_path, method):
    program, _, _ = start(tmp_path, method, "leave")
    program.communicate(timeout=120)
    assert program.returncode == 0
