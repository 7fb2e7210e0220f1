"""Runs the parts one after another so that none of them takes the others or the report along."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"
NOT_STARTED, INTERRUPTED = "not started", "interrupted"

# Of the output of one part, more than this is cut out of the middle of the log.
LOG_HEAD, LOG_TAIL = 256 << 10, 1 << 20
# pytest writes its results and a benchmark its table after SIGINT; what ignores it is killed.
GRACE = ((signal.SIGINT, 8.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))


class Interrupted(BaseException):
    """The validation itself was asked to end; no part may catch this as an error of its own."""


@dataclass(frozen=True)
class Failure:
    name: str
    message: str = ""


@dataclass
class Outcome:
    """What came of a part: a status, one line, what failed, and figures for the report."""

    status: str
    summary: str = ""
    failures: list[Failure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def failed(cls, name: str, message: str, **details: Any) -> Outcome:
        """A part with a single failure, whose first line is the summary."""
        summary = message.partition("\n")[0]
        return cls(FAILED, summary, [Failure(name, message)], details)


@dataclass(frozen=True)
class Part:
    """A step: ``run(session)`` returns its outcome within ``limit`` seconds.

    It gets less where less is left, and where the parts behind it need their ``reserve``; with
    less than ``minimum`` it is not started.
    """

    name: str
    run: Callable[[Session], Outcome]
    limit: float
    reserve: float = 0.0
    minimum: float = 3.0


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    code: int
    output: str
    timed_out: bool
    seconds: float

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.timed_out:
            return f"timed out after {self.seconds:.0f} s"
        if self.code < 0:
            return f"was killed by {_signal_name(-self.code)}"
        return f"exited with {self.code}"

    def tail(self, lines: int = 15) -> str:
        """The last lines of the output that say something."""
        return "\n".join([line for line in self.output.splitlines() if line.strip()][-lines:])


class Session:
    """What the parts share: folders, facts about the machine, time, and a way to run processes."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        scratch: Path,
        *,
        limit: float,
        quick: bool = False,
        save: Callable[[Session], None] = lambda session: None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.root, self.folder, self.scratch = root, folder, scratch
        self.quick, self.limit = quick, limit
        self.facts: dict[str, Any] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.signal: int | None = None
        self.log = folder / "log.txt"
        self._save, self._say = save, say
        self.started = time.time()
        self._start = time.monotonic()
        self._part_deadline = self.deadline

    @property
    def deadline(self) -> float:
        """When everything has to be over, on the monotonic clock."""
        return self._start + self.limit

    @property
    def seconds(self) -> float:
        """How long this has been running."""
        return time.monotonic() - self._start

    def remaining(self) -> float:
        """Seconds left to the part that runs."""
        return self._part_deadline - time.monotonic()

    def execute(self, parts: Sequence[Part]) -> None:
        """Run the parts in turn and save the report after each."""
        for part in parts:
            self.outcomes[part.name] = Outcome(NOT_STARTED, "not reached")
        previous = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            self._try_save()
            for i, part in enumerate(parts):
                if self.signal is not None:
                    self.outcomes[part.name].summary = "interrupted before"
                    continue
                self._execute(part, sum(later.reserve for later in parts[i + 1 :]))
                self._try_save()
            self._try_save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _execute(self, part: Part, reserve: float) -> None:
        left = self.deadline - time.monotonic()
        if left < part.minimum:
            self.outcomes[part.name].summary = "no time was left"
            self._say(f"{part.name}: not started, no time was left")
            return
        allowed = min(part.limit, max(left - reserve, part.minimum))
        start = time.monotonic()
        self._part_deadline = start + allowed
        self._say(f"[{self.seconds:4.0f} s] {part.name} (at most {allowed:.0f} s) ...")
        begin = self._heading(part.name)
        try:
            outcome = part.run(self)
        except Interrupted:
            name = _signal_name(self.signal or signal.SIGTERM)
            outcome = Outcome(INTERRUPTED, f"by {name}", [Failure(part.name, f"ended by {name}")])
        except Exception as error:
            outcome = Outcome.failed(part.name, f"{type(error).__name__}: {error}")
            self._write_log(traceback.format_exc())
        outcome.seconds = time.monotonic() - start
        self.outcomes[part.name] = outcome
        self._tidy_log(begin)
        self._say(
            f"[{self.seconds:4.0f} s] {part.name}: {outcome.status} "
            f"({outcome.seconds:.0f} s) {outcome.summary}"
        )

    def run(
        self,
        command: Sequence[str | Path],
        *,
        limit: float | None = None,
        environment: Mapping[str, str | None] | None = None,
    ) -> Finished:
        """Run a process in the root folder; its output goes to the log; its group ends with it.

        Args:
            command: the program and its arguments.
            limit: seconds until it is ended; what is left to the part by default, never more.
            environment: variables to set, or with None to remove.

        Raises:
            Interrupted: the validation was asked to end.
        """
        words = [str(word) for word in command]
        variables = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "PYTHONSAFEPATH": None}
        # A choice of backend in the caller's environment would keep the tests from the others.
        variables |= {"DASR_OPS_BACKEND": None, "DASR_OPS_CPU_ISA": None, **(environment or {})}
        env = {k: v for k, v in {**os.environ, **variables}.items() if v is not None}
        shown = [f"{k}={v}" for k, v in (environment or {}).items() if v is not None]
        self._write_log(f"$ {' '.join([*shown, *words])}\n")
        start = time.monotonic()
        deadline = min(self._part_deadline, start + limit if limit is not None else float("inf"))
        with self.log.open("ab") as log:
            begin = log.tell()
            try:
                process = subprocess.Popen(
                    words,
                    cwd=self.root,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_lead_group,
                )
            except OSError as error:
                self._write_log(f"{error}\n")
                return Finished(127, str(error), False, 0.0)
            timed_out = False
            try:
                while not _has_ended(process):
                    if self.signal is not None:
                        raise Interrupted
                    if time.monotonic() >= deadline:
                        timed_out = True
                        break
                    time.sleep(0.05)
            finally:
                end_group(process)
        with self.log.open("rb") as log:
            log.seek(begin)
            output = log.read().decode(errors="replace")
        code = process.returncode if process.returncode is not None else -signal.SIGKILL
        finished = Finished(code, output, timed_out, time.monotonic() - start)
        self._write_log(f"[{finished.ending}, {finished.seconds:.1f} s]\n")
        return finished

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only noted here: raising would hit whatever line runs, the writing of the report too.
        self.signal = number

    def _heading(self, name: str) -> int:
        self._write_log(f"\n{'=' * 20} {name} {'=' * 20}\n")
        return self.log.stat().st_size

    def _write_log(self, text: str) -> None:
        with self.log.open("ab") as log:
            log.write(text.encode(errors="replace"))

    def without_paths(self, text: str) -> str:
        """The text without the folders of this machine: reports are published."""
        for path, name in ((self.scratch, "SCRATCH"), (self.root, "."), (sys.prefix, "PYTHON")):
            text = text.replace(str(path), name)
        return text

    def _tidy_log(self, begin: int) -> None:
        data = self.log.read_bytes()
        part = data[begin:]
        if (cut := len(part) - LOG_HEAD - LOG_TAIL) > 0:
            note = f"\n... {cut} bytes left out ...\n".encode()
            part = part[:LOG_HEAD] + note + part[-LOG_TAIL:]
        text = self.without_paths(part.decode(errors="replace"))
        write_atomically(self.log, data[:begin] + text.encode())

    def _try_save(self) -> None:
        try:
            self._save(self)
        except Exception:
            # A report that cannot be written must not keep the parts behind it from running.
            self._say(traceback.format_exc())


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file under another name first: its own name never stands for half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(partial, path)


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _lead_group() -> None:
    """In a new process: a group to be ended as a whole, and an end with its parent, if killed."""
    os.setpgrp()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all others of its group, the more forcefully the longer it takes."""
    for number, grace in GRACE:
        if _has_ended(process):
            break
        _signal_group(process, number)
        end = time.monotonic() + grace
        while not _has_ended(process) and time.monotonic() < end:
            time.sleep(0.05)
    # Its children may outlive it. It is not reaped yet, so the group cannot be another's.
    _signal_group(process, signal.SIGKILL)
    process.poll()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process is over, without reaping it."""
    if process.returncode is not None:
        return True
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
