"""TensorBoard files: present, absent, resumed, failing."""

from __future__ import annotations

import builtins
import errno
import io
import math
from typing import ClassVar

import pytest
import torch

from dasr_ops.train.config import LogConfig
from dasr_ops.train.watch import RunLog
from dasr_ops.train.watch import tensorboard as board_module
from dasr_ops.train.watch.guard import Guard
from dasr_ops.train.watch.tensorboard import Board


def read(folder):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def write(run, start, steps, factor=1.0):
    stream = io.StringIO()
    with RunLog(run, LogConfig(every=1), start=start, total=100, stream=stream) as log:
        for step in steps:
            log.step(step, {"loss": factor * step, "odd": math.nan}, pictures=1, wait=0.0)
            log.validation(step, {"weak": {"psnr": 20.0 + step}})
            picture = torch.rand(2, 3, 8, 8)
            log.pictures(step, picture[..., ::2, ::2], picture, picture)
    return stream.getvalue()


def test_scalars_and_pictures_and_a_resume(tmp_path):
    pytest.importorskip("tensorboard")
    write(tmp_path, 0, range(1, 6))
    write(tmp_path, 3, range(4, 7), factor=10.0)  # killed behind step 5, saved at step 3
    events = read(tmp_path / "tensorboard")
    tags = events.Tags()
    assert tags["images"] == ["lr_sr_gt"]
    assert {"train/loss", "train/odd", "validation/weak/psnr", "speed/wait_share"} <= set(
        tags["scalars"]
    )
    found = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert found == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]
    assert math.isnan(events.Scalars("train/odd")[0].value)
    assert events.Images("lr_sr_gt")[0].width == 3 * 8 + 2 * 2


def test_a_missing_package_is_said_once(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    text = write(tmp_path, 0, range(1, 4))
    assert text.count("package tensorboard is not installed; pip install 'dasr-ops[train]'") == 1
    assert not (tmp_path / "tensorboard").exists()
    assert (tmp_path / "pictures" / "step_00000003.png").is_file()


class FailingWriter:
    made: ClassVar[list[FailingWriter]] = []
    full = True

    def __init__(self, folder, purge_step, flush_secs):
        self.written, self.purge_step, self.closed = [], purge_step, False
        self.made.append(self)

    def add_scalar(self, name, value, step):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.append((name, value, step))

    def close(self):
        self.closed = True
        if self.full:
            raise RuntimeError("closing fails too")


def test_a_failing_writer_is_given_up_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(board_module, "_summary_writer", lambda message: FailingWriter)
    monkeypatch.setattr(FailingWriter, "made", [])
    monkeypatch.setattr(FailingWriter, "full", True)
    now, said = [0.0], []
    board = Board(tmp_path, 7, Guard(said.append), said.append, clock=lambda: now[0])
    for step in range(8, 12):
        board.scalars(step, {"a": 1.0})
    assert len(FailingWriter.made) == 1 and FailingWriter.made[0].closed
    assert said == [
        "warning: TensorBoard's file cannot be written, training goes on: No space left on device"
    ]
    now[0] = 1000.0
    monkeypatch.setattr(FailingWriter, "full", False)
    board.scalars(20, {"a": 1.0})
    first, second = FailingWriter.made
    assert second.written == [("a", 1.0, 20)]
    assert first.purge_step == 8 and second.purge_step is None  # hides nothing of this run
    board.close()
    assert second.closed and len(said) == 1
