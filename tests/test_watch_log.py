"""The log of a run: rows, resumes, kills, full disks, terminals."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dasr_ops.train.config import LogConfig
from dasr_ops.train.watch import RunLog
from dasr_ops.train.watch import log as log_module
from dasr_ops.train.watch.csv_log import CsvLog
from dasr_ops.train.watch.grid import grid


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run_log(run, *, start=0, total=100, every=2, stream=None, clock=None, **options):
    config = LogConfig(every=every, tensorboard=False, **options)
    stream = io.StringIO() if stream is None else stream
    return RunLog(
        run, config, start=start, total=total, stream=stream, clock=clock or Clock()
    ), stream


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def steps(path):
    return [int(row["step"]) for row in read(path)]


def test_rows_are_means_since_the_row_before(tmp_path):
    clock = Clock()
    log, _ = run_log(tmp_path / "new" / "run", every=4, clock=clock)
    for step in range(1, 9):
        clock.now += 0.5
        values = {"loss": step, "lr": 1e-4} | ({"gan": 10.0 * step} if step >= 7 else {})
        log.step(step, values, pictures=6, wait=0.1)
        with log.paused():  # a checkpoint
            clock.now += 100
    log.close()
    first, second = read(tmp_path / "new" / "run" / "log.csv")
    header = (tmp_path / "new" / "run" / "log.csv").read_text().splitlines()[0]
    assert header == "time,step,loss,lr,gan,images_per_second,wait_share"
    assert first["step"] == "4" and second["step"] == "8"
    assert float(first["loss"]) == 2.5 and float(second["loss"]) == 6.5
    assert float(first["lr"]) == 1e-4
    assert first["gan"] == "" and float(second["gan"]) == 75  # of the steps that have it
    for row in (first, second):
        assert float(row["images_per_second"]) == pytest.approx(12)
        assert float(row["wait_share"]) == pytest.approx(0.2)
        assert row["time"].endswith("+00:00")


def test_what_is_left_is_written_at_the_end(tmp_path):
    log, _ = run_log(tmp_path, total=5, every=2)
    for step in range(1, 4):
        log.step(step, {"loss": step}, pictures=1, wait=0)
    log.close()
    log.close()
    assert steps(tmp_path / "log.csv") == [2, 3]
    log, _ = run_log(tmp_path, start=3, total=5, every=4)
    for step in (4, 5):
        log.step(step, {"loss": step}, pictures=1, wait=0)
    assert steps(tmp_path / "log.csv") == [2, 3, 4, 5]  # the last step is an entry


def test_values_that_are_not_finite_are_written(tmp_path):
    log, stream = run_log(tmp_path, every=1)
    log.step(1, {"a": math.nan, "b": math.inf, "c": -math.inf}, pictures=1, wait=0)
    log.step(2, {"a": 1.0, "b": 1.0, "c": torch.tensor(2.0)}, pictures=1, wait=0)
    log.close()
    rows = read(tmp_path / "log.csv")
    assert [rows[0][n] for n in "abc"] == ["nan", "inf", "-inf"]
    assert [rows[1][n] for n in "abc"] == ["1", "1", "2"]
    assert "a nan" in stream.getvalue()


def test_a_resumed_run_loses_the_rows_beyond_its_start(tmp_path):
    log, _ = run_log(tmp_path, every=1)
    for step in range(1, 8):
        log.step(step, {"loss": step}, pictures=1, wait=0)
    log.validation(5, {"weak": {"psnr": 20.0}})
    log.validation(7, {"weak": {"psnr": 21.0}})
    before = (tmp_path / "log.csv").read_bytes()  # never closed: killed
    log, _ = run_log(tmp_path, every=1, start=5)
    assert (tmp_path / "log.csv").read_bytes() == b"".join(before.splitlines(True)[:6])
    assert steps(tmp_path / "validation.csv") == [5]
    log.step(6, {"loss": 60.0}, pictures=1, wait=0)
    assert [float(row["loss"]) for row in read(tmp_path / "log.csv")] == [1, 2, 3, 4, 5, 60]
    log, _ = run_log(tmp_path, every=1)  # killed before the first checkpoint
    assert steps(tmp_path / "log.csv") == []


@pytest.mark.parametrize(
    "damage",
    [
        b"2026-01-01T00:00:00+00:00,3,0.",  # half a line
        b"2026-01-01T00:00:00+00:00,3\n",  # too few cells
        b"x,y,z,1,2\n",  # no step
        b"\0" * 64,  # after a power failure
        b"\0" * 64 + b"\n",
        b"\xff\xfe",
        b"\n\n",
    ],
)
def test_damaged_ends_are_dropped(tmp_path, damage):
    log, _ = run_log(tmp_path, every=1)
    for step in (1, 2):
        log.step(step, {"loss": step}, pictures=1, wait=0)
    with open(tmp_path / "log.csv", "ab") as file:
        file.write(damage)
    log, _ = run_log(tmp_path, start=9, every=1)
    log.step(10, {"loss": 10}, pictures=1, wait=0)
    assert steps(tmp_path / "log.csv") == [1, 2, 10]
    assert not (tmp_path / "log.csv.old").exists()


@pytest.mark.parametrize("content", [b"", b"time,st", b"time,step,loss", b"\0\0\0"])
def test_a_half_written_header_is_replaced(tmp_path, content):
    (tmp_path / "log.csv").write_bytes(content)
    log, _ = run_log(tmp_path, start=9, every=1)
    log.step(10, {"loss": 10}, pictures=1, wait=0)
    assert steps(tmp_path / "log.csv") == [10]


def test_a_file_of_another_kind_is_set_aside(tmp_path):
    (tmp_path / "log.csv").write_text("my,own,notes\n1,2,3\n")
    log, _ = run_log(tmp_path, every=1)
    log.step(1, {"loss": 1}, pictures=1, wait=0)
    assert steps(tmp_path / "log.csv") == [1]
    assert (tmp_path / "log.csv.old").read_text() == "my,own,notes\n1,2,3\n"


def test_columns_stay_where_they_are_after_a_resume(tmp_path):
    log, _ = run_log(tmp_path, every=1)
    log.step(1, {"loss": 1, "gan": 2}, pictures=1, wait=0)
    log, _ = run_log(tmp_path, start=1, every=1)
    log.step(2, {"new": 3, "loss": 1}, pictures=1, wait=0)  # without gan
    first, second = read(tmp_path / "log.csv")
    assert list(first) == ["time", "step", "loss", "gan", "new", "images_per_second", "wait_share"]
    assert (first["new"], second["gan"], second["new"]) == ("", "", "3")


def test_a_removed_file_is_begun_anew(tmp_path):
    log, _ = run_log(tmp_path, every=1)
    log.step(1, {"loss": 1}, pictures=1, wait=0)
    (tmp_path / "log.csv").unlink()
    log.step(2, {"loss": 1}, pictures=1, wait=0)
    assert steps(tmp_path / "log.csv") == [2]
    (tmp_path / "log.csv").unlink()
    log.step(3, {"loss": 1, "more": 2}, pictures=1, wait=0)
    assert steps(tmp_path / "log.csv") == [3]


def test_names_that_would_break_the_header(tmp_path):
    for name in ("step", "a,b", 'a"b', "a\nb", ""):
        with pytest.raises(ValueError, match="values: expected names fit for a CSV header"):
            CsvLog(tmp_path / "x.csv", start=0).write(1, {name: 1.0})


def test_a_full_disk_is_said_once_and_survived(tmp_path, monkeypatch):
    log, stream = run_log(tmp_path, every=1)
    log.step(1, {"loss": 1}, pictures=1, wait=0)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(CsvLog, "_append", full)
        patch.setattr(log_module, "atomic_path", full)
        patch.setattr(log_module, "open", full, raising=False)
        for step in (2, 3, 4):
            log.step(step, {"loss": 1}, pictures=1, wait=0)
            log.message(f"hello {step}")
            log.validation(step, {"weak": {"psnr": 1.0}})
            picture = torch.zeros(1, 3, 4, 4)
            log.pictures(step, picture, picture, picture)
    log.step(5, {"loss": 1}, pictures=1, wait=0)
    log.message("space again")
    log.close()
    text = stream.getvalue()
    for what in ("log.csv", "train.log", "pictures", "validation.csv"):
        assert text.count(f"warning: {what} cannot be written, training goes on: No space") == 1
    assert all(f"hello {step}\n" in text for step in (2, 3, 4))
    assert steps(tmp_path / "log.csv") == [1, 5]
    assert (tmp_path / "train.log").read_text().endswith(" space again\n")


def test_half_a_row_does_not_stay_behind(tmp_path, monkeypatch):
    log = CsvLog(tmp_path / "x.csv", start=0)
    log.write(1, {"a": 1.0})
    good = (tmp_path / "x.csv").read_bytes()

    class Full(io.FileIO):
        def write(self, data):
            super().write(data[:7])
            raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        opened = "dasr_ops.train.watch.csv_log.open"
        patch.setattr(opened, lambda path, mode, buffering: Full(path, "ab"), raising=False)
        with pytest.raises(OSError, match="full"):
            log.write(2, {"a": 2.0})
    assert (tmp_path / "x.csv").read_bytes() == good


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_device_behind_standard_error(tmp_path):
    with open("/dev/full", "w", buffering=1) as stream:
        log, _ = run_log(tmp_path, every=1, stream=stream)
        log.step(1, {"loss": 1}, pictures=1, wait=0)
        log.message("nobody hears this")
        log.close()
        with pytest.raises(OSError):
            stream.write("x\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # let it be closed
    assert steps(tmp_path / "log.csv") == [1]


def test_lines_where_nobody_watches(tmp_path):
    clock = Clock()
    log, stream = run_log(tmp_path, total=1000, every=10, clock=clock)
    for step in range(1, 1001):
        clock.now += 0.5
        log.step(step, {"l1": 0.5, "loss": 0.25, "lr": 2e-4}, pictures=4, wait=0.05)
    log.message("done")
    log.close()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue()
    # 500 seconds of entries every 5: the first, one in 30 seconds, the last.
    assert len(lines) == 1 + 16 + 1 + 1
    assert lines[0] == (
        "step 10/1000: loss 0.25, l1 0.5, lr 0.0002, 8 images/s, waiting 10%, ETA 0:08:15"
    )
    assert lines[-2].startswith("step 1000/1000: ") and "ETA" not in lines[-2]
    assert lines[-1] == "done"
    assert (tmp_path / "train.log").read_text().endswith(" done\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(tmp_path):
    log, stream = run_log(tmp_path, total=20, start=4, every=5, stream=Terminal())
    for step in range(5, 16):
        log.step(step, {"loss": 0.125, "lr": 3e-4}, pictures=4, wait=0.0)
        if step == 8:
            log.message("a message\nof two lines")
    log.close()
    text = stream.getvalue()
    assert "\na message" in text.replace("\r", "\n") and "of two lines\n" in text
    last = text.rstrip().split("\r")[-1]
    assert "15/20" in last and "loss 0.125, lr 0.0003" in last and "images/s" in last


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("columns", [70, 0])  # some containers' terminals say that they have 0
def test_a_real_terminal(tmp_path, columns):
    import fcntl
    import pty
    import select
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(slave, "w") as stream:
        log, _ = run_log(tmp_path, total=3, every=1, stream=stream)
        for step in (1, 2, 3):
            log.step(step, {"loss": 1.5}, pictures=4, wait=0.0)
        log.message("hello")
        log.close()
        text = ""
        while select.select([master], [], [], 0.2)[0]:
            text += os.read(master, 100_000).decode()
        assert max(map(len, text.replace("\n", "\r").split("\r"))) <= (columns or 120)
        os.close(master)  # the terminal goes away
        log, _ = run_log(tmp_path, start=3, total=4, every=1, stream=stream)
        log.step(4, {"loss": 1.5}, pictures=4, wait=0.0)
        log.message("nobody hears this")
        log.close()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    assert "hello" in text and "3/3" in text
    assert steps(tmp_path / "log.csv") == [1, 2, 3, 4]


def test_no_standard_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    log = RunLog(tmp_path, LogConfig(every=1, tensorboard=False), start=0, total=2)
    log.step(1, {"loss": 1.5}, pictures=4, wait=0.0)
    log.close()
    assert steps(tmp_path / "log.csv") == [1]


def test_validation_is_written_down(tmp_path):
    log, stream = run_log(tmp_path)
    log.validation(10, {"weak": {"psnr": 27.125, "ssim": 0.75}, "severe": {"psnr": math.inf}})
    rows = read(tmp_path / "validation.csv")
    assert [(r["step"], r["level"], r["psnr"], r["ssim"]) for r in rows] == [
        ("10", "weak", "27.125", "0.75"),
        ("10", "severe", "inf", ""),
    ]
    assert "validation at step 10, weak: PSNR-Y [dB] 27.12, SSIM-Y 0.7500" in stream.getvalue()


def test_pictures_are_rows_of_lr_sr_gt(tmp_path):
    log, _ = run_log(tmp_path, images_every=3)
    assert [step for step in range(1, 10) if log.wants_pictures(step)] == [3, 6, 9]
    assert not run_log(tmp_path, images_every=0)[0].wants_pictures(5)
    lr = torch.randint(256, (6, 3, 4, 5), dtype=torch.uint8)
    gt = torch.rand(6, 3, 16, 20)
    sr = gt.clone().to(torch.float16)
    sr[0, :, 0, :4] = torch.tensor([math.nan, math.inf, -math.inf, 7.0])
    log.pictures(3, lr, sr, gt)
    with Image.open(tmp_path / "pictures" / "step_00000003.png") as image:
        picture = np.asarray(image)
    assert picture.shape == (4 * 16 + 3 * 2, 3 * 20 + 2 * 2, 3)
    row = picture[18:34]
    expected_lr = lr[1].permute(1, 2, 0).numpy().repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(row[:, :20], expected_lr)
    expected_gt = np.rint(gt[1].permute(1, 2, 0).numpy() * 255)
    np.testing.assert_array_equal(row[:, 44:64], expected_gt)
    assert (picture[16:18] == 255).all() and (picture[:, 20:22] == 255).all()
    assert picture[0, 22:26, 0].tolist() == [0, 255, 0, 255]


def test_grids_that_do_not_fit():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"sr: expected \[2, 3, 4, 4\] as gt"):
        grid(x, x[:, :, :3], x)
    with pytest.raises(ValueError, match=r"lr: expected \[B, 3, H, W\]"):
        grid(x[:, :1], x, x)


def test_bad_start(tmp_path):
    with pytest.raises(ValueError, match=r"start: expected 0\.\.100, got 101"):
        run_log(tmp_path, start=101)
