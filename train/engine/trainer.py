"""The loop: data, steps, log, validation and checkpoints, until the end or a request to stop."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from dasr_ops.models._messages import one_line
from dasr_ops.models.files import TEMPORARY_PREFIX, atomic_path

from ..batch import Batch
from ..config import StartConfig, TrainConfig
from ..config_files import save_config, to_dict
from ..data import BatchStream
from ..synthesis import Synthesis
from ..watch import RunLog, Validation
from .changes import changes
from .checkpoints import Checkpoints, State
from .errors import TrainingError
from .interruption import Interruption, interruption
from .learner import NONFINITE, Learner
from .lock import locked
from .networks import export
from .numerics import numerics
from .optimizers import fits
from .processes import Processes, end_threads, explain, processes

EXIT_FAILURE = 1
_STOP = "stop"


def train(config: TrainConfig) -> int:
    """Train to the end of the schedule, going on from the newest checkpoint in the run's folder.

    Ctrl-C and SIGTERM are honoured after the present step: the state is saved, and the same call
    goes on. Under torchrun each process calls this.

    Args:
        config: the run.

    Returns:
        An exit code: 0 finished, 1 failed (the reason is on the standard error and in the log),
        130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        with (
            numerics(config.engine),
            processes(config.engine.device) as group,
            interruption() as asked,
        ):
            code = Trainer(config, group, asked).run()
    except TrainingError as error:
        if not error.told:
            print(f"error: {error}", file=sys.stderr)
        code = EXIT_FAILURE
    end_threads()  # not sooner: until here the error held the networks
    return code


class Trainer:
    """One process of a run.

    Args:
        config: the run.
        group: this process among those of the run.
        asked: whether to stop.

    Raises:
        TrainingError: the run cannot start.
    """

    def __init__(self, config: TrainConfig, group: Processes, asked: Interruption) -> None:
        self.config, self.group, self.asked = config, group, asked
        self.log: RunLog | None = None
        self.notes: list[str] = []
        if not config.data.train:
            raise TrainingError("data.train: expected at least one folder of pictures, got none")
        self.checkpoints = Checkpoints(
            config.run / "checkpoints", config.checkpoint.keep, self._warn
        )
        state = self.checkpoints.newest()
        self.start = 0 if state is None else int(state["step"])
        self.saved = None if state is None else self.start
        self.exported: list[Path] = []
        if not group.agree(self.start):
            raise TrainingError(
                f"the processes do not see the same checkpoints, this one that of step "
                f"{self.start}: {config.run} must be one folder for all of them"
            )
        if state is not None:
            self._check_settings(state)
        # What a resumed run started from is in its checkpoint, and the files may be gone.
        beginning = config if state is None else replace(config, start=StartConfig())
        self.learner = Learner(beginning, group)
        self.stream = _open_stream(config, group, self.start)
        self.validation: Validation | None = None
        try:
            if state is not None:
                self._resume(state)
            if group.is_main and config.validation.pictures is not None:
                with _explained("validation"), self._heard():
                    self.validation = Validation(config, group.device)
        except BaseException:
            self.stream.close()
            raise

    def run(self) -> int:
        """Run the loop; returns the exit code."""
        if not self.group.is_main:
            return self._run()
        with _explained("run"):
            self.config.run.mkdir(parents=True, exist_ok=True)
        # Before anything in it is touched: it may be another run's.
        with locked(self.config.run):
            _prepare_folder(self.config)
            return self._run()

    def _run(self) -> int:
        config, total = self.config, self.config.schedule.iterations
        try:
            if self.start >= total:
                self._say(f"{config.run} is at step {self.start} of {total}: nothing to do")
                # But what lacks if it was killed, or the disk full, behind its last checkpoint.
                code = 0 if self._export(self.start) else EXIT_FAILURE
                self._validate_late()
            else:
                if self.group.is_main:
                    self.log = RunLog(config.run, config.log, start=self.start, total=total)
                if self.start:
                    self._say("; ".join((f"going on from step {self.start}", *self.notes)))
                    self._validate_late()
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "skipping ")  # they go to the log
                    code = self._loop()
        except Exception as error:
            reason = explain(error)
            if self.log is not None:
                self.log.message(f"error: {reason}")
                if isinstance(reason, TrainingError):
                    reason.told = True
            if reason is error:
                raise
            raise reason from error
        finally:
            self._finish()
            self.stream.close()
            if self.log is not None:
                self.log.close()
        return code

    def _finish(self) -> None:
        if self.stream.skipped:
            count, pictures = len(self.stream.skipped), self.stream.pictures
            self._warn(f"{count} of {pictures} pictures could not be used")

    def _loop(self) -> int:
        config, total = self.config, self.config.schedule.iterations
        batches = iter(self.stream)
        complete = True
        for step in range(self.start, total):
            before = self.stream.wait_seconds
            parts = self._next(batches)
            wait = self.stream.wait_seconds - before
            values = self._gradients(parts, step)
            values[_STOP] = torch.tensor(
                float(self.asked.requested), device=self.group.device, dtype=torch.float64
            )
            sums = self.group.sums(values)
            stop = sums.pop(_STOP) > 0
            if sums.pop(NONFINITE) > 0:
                self._fail(step, parts, sums)
            self.learner.update(step)
            done = step + 1
            if self.log is not None:
                means = {name: value / self.group.world_size for name, value in sums.items()}
                means["lr"] = self.learner.learning_rate(step)
                pictures = sum(map(len, parts)) * self.group.world_size
                self.log.step(done, means, pictures=pictures, wait=wait)
                if self.log.wants_pictures(done) and self.learner.shown is not None:
                    self.log.pictures(done, *self.learner.shown)
            last = done == total
            # Before the validation, which may take long: what is asked to stop may be killed soon.
            if last or stop or _due(done, config.checkpoint.every):
                complete = self._save(done)
            if stop and not last:
                saved = self.saved == done
                end = "the same command goes on from there" if saved else "it is not saved"
                self._say(f"stopped at step {done}: {end}")
                return self.asked.exit_code
            if last or _due(done, config.validation.every):
                self._validate(done)
        self._say(self._ending(total))
        return 0 if complete else EXIT_FAILURE

    def _ending(self, total: int) -> str:
        files = ", ".join(map(str, self.exported)) or "no networks"
        if self.saved == total and self.exported:
            return f"finished at step {total}: {files}"
        newest = "no checkpoint" if self.saved is None else f"the checkpoint of step {self.saved}"
        return (
            f"error: at the end, step {total}, not everything could be written. There are {newest} "
            f"and, of this step, {files}; with more room the same command goes on"
        )

    def _next(self, batches: Iterator[Batch]) -> list[Batch]:
        known = len(self.stream.skipped)
        try:
            with _explained("data"):
                return [next(batches) for _ in range(self.config.engine.accumulate)]
        finally:
            for path, reason in list(self.stream.skipped.items())[known:]:
                self._warn(f"{path} is left out: {reason}")

    def _gradients(self, parts: list[Batch], step: int) -> dict[str, torch.Tensor]:
        try:
            return self.learner.gradients(parts, step)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise TrainingError(
                f"out of memory in step {step + 1}: a lower data.batch_size with "
                "engine.accumulate, engine.precision = bfloat16 or engine.recompute take less "
                f"({one_line(error)})"
            ) from error

    def _validate(self, step: int) -> None:
        if self.validation is not None and self.log is not None:
            restorer = self.learner.average.network
            with self.log.paused(), self._heard():
                scores = self.validation.run(lambda lr: restorer(lr)[0])
            self.log.validation(step, scores)
        self.group.barrier()

    def _validate_late(self) -> None:
        """Make up for the validation of the step that the run goes on from, if it was due.

        A run that is asked to stop saves and leaves; one that is killed may be so while validating.
        """
        step, total = self.start, self.config.schedule.iterations
        if step != total and not _due(step, self.config.validation.every):
            return
        if self.validation is not None:  # in the first process alone
            if self.log is None:
                self.log = RunLog(
                    self.config.run, self.config.log, start=step, total=max(step, total)
                )
            if self.log.validated(step):
                self.group.barrier()
                return
        self._validate(step)

    def _state(self) -> State:
        random: State = {"cpu": torch.get_rng_state()}
        if self.group.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.group.device)
        return {"random": random, "stream": self.stream.state_dict()}

    def _save(self, step: int) -> bool:
        """Write a checkpoint and the networks; returns whether all of that worked."""
        with self._paused():
            # One by one: where a checkpoint finds no room, the smaller networks may.
            saved, exported = self._checkpoint(step), self._export(step)
            return saved and exported

    def _paused(self) -> contextlib.AbstractContextManager[None]:
        return self.log.paused() if self.log is not None else contextlib.nullcontext()

    def _checkpoint(self, step: int, *, prune: bool = True) -> bool:
        # A checkpoint counts when the first process has written its own: it waits for the others.
        error = None if self.group.is_main else self._write(step)
        self.group.barrier()
        if self.group.is_main:
            error = self._write(step, prune)
        failed = torch.tensor(float(error is not None), device=self.group.device)
        if error is not None:
            older = self.checkpoints.steps()
            kept = f"that of step {older[0]} is kept" if older else "there is no older one"
            self._say(f"warning: the checkpoint of step {step} was not written: {error}; {kept}")
        if self.group.sums({"failed": failed})["failed"] > 0:
            if error is None:
                self._warn(f"the checkpoint of step {step} lacks the part of another process")
            return False
        self.saved = step
        return True

    def _write(self, step: int, prune: bool = False) -> OSError | None:
        """Write the checkpoint of this process; returns what went wrong."""
        state = self._state()
        try:
            if not self.group.is_main:
                self.checkpoints.save(step, state, self.group.rank)
                return None
            state |= {"config": to_dict(self.config), "learner": self.learner.state_dict()}
            state["processes"] = self.group.world_size
            self.checkpoints.save(step, state)
            if prune:
                self.checkpoints.prune(step)
        except OSError as error:
            return error
        return None

    def _export(self, step: int) -> bool:
        """Write the networks for use; returns whether that worked."""
        if not self.group.is_main:
            return True
        learner, self.exported = self.learner, []
        metadata = {"step": str(step), "labels": self.config.degradation.labels}
        try:
            self.exported = export(
                self.config.run, learner.average.network, learner.discriminator, metadata
            )
        except OSError as error:
            self._warn(f"the networks of step {step} were not written: {error}")
            return False
        return True

    def _check_settings(self, state: State) -> None:
        moved = state.get("carried", False)
        changed = changes(state["config"], to_dict(self.config), moved=moved)
        if changed and self.config.checkpoint.allow_changes:
            self.notes += changed
        elif changed:
            raise TrainingError(
                f"{self.config.run} holds a run with other settings: {'; '.join(changed)}. Choose "
                "another folder (--run), or accept the change (--checkpoint.allow-changes)"
            )

    def _resume(self, state: State) -> None:
        former, name = state["config"]["optimizer"]["name"], self.config.optimizer.name
        known, lost = former == name and "optimizer" in state["learner"], ""
        if former != name:
            lost = f"{name} has no use for the state of {former}: "
        elif known and not fits(self.learner.optimizer, state["learner"]["optimizer"]):
            known, lost = False, "optimizer.options ask for what the run has not gathered: "
        if not known:
            self.notes.append(f"{lost}optimisers begin anew, with a rising rate")
        try:
            self.learner.load_state_dict(state["learner"], anew=None if known else self.start)
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"{self.config.run}: the checkpoint of step {self.start} does not fit the "
                f"settings: {one_line(error, 300)}"
            ) from error
        part: State | None = state
        if self.group.rank:
            part = self.checkpoints.part(self.start, self.group.rank)
        before, now = state.get("processes", 1), self.group.world_size
        if before != now:
            self.notes.append(f"{now} processes instead of {before}: batches have another size")
        if part is None or "stream" not in part:
            return  # of fewer processes, or carried from elsewhere: this one's pool begins empty
        self.stream.load_state_dict(part["stream"])
        torch.set_rng_state(part["random"]["cpu"])
        if self.group.device.type == "cuda" and "cuda" in part["random"]:
            torch.cuda.set_rng_state(part["random"]["cuda"], self.group.device)

    def _fail(self, step: int, parts: list[Batch], sums: dict[str, float]) -> None:
        """Save the weights before the step and what made it fail, and give up.

        The pool of samples is a batch further: the same command goes on with another batch.
        """
        if self.saved != step:
            # That state may be what is wrong: older ones and the networks stay.
            with self._paused():
                self._checkpoint(step, prune=False)
        path = self.config.run / f"failure_step_{step:08d}.rank{self.group.rank}.pt"
        batches = [{name: t.cpu() for name, t in part.state_dict().items()} for part in parts]
        try:
            with atomic_path(path) as temporary:
                torch.save({"step": step, "losses": sums, "batches": batches}, temporary)
            where = f"the batch is in {path}"
        except (OSError, RuntimeError) as error:
            where = f"the batch could not be saved: {error}"
        losses = ", ".join(
            f"{name} {value / self.group.world_size:g}" for name, value in sums.items()
        )
        message = (
            f"a loss or gradient is not finite in step {step + 1} ({losses}). The weights before "
            f"it are saved, {where}. A lower optimizer.lr, optimizer.clip_norm = 1, or "
            "engine.precision = bfloat16 or float32 may help (with --checkpoint.allow-changes)"
        )
        raise TrainingError(message)

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """Put warnings of the block into the log, in one line each."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
        for warning in caught:
            self._warn(" ".join(str(warning.message).split()))

    def _say(self, text: str) -> None:
        if self.log is not None:
            self.log.message(text)
        elif self.group.is_main:
            print(text, file=sys.stderr)

    def _warn(self, text: str) -> None:
        if self.group.is_main:
            self._say(f"warning: {text}")


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what a user can mend into a `TrainingError` that begins with ``what``."""
    try:
        yield
    except TrainingError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        text = str(error)  # which may begin with the setting's full name
        raise TrainingError(text if text.startswith(f"{what}.") else f"{what}: {text}") from error


def _open_stream(config: TrainConfig, group: Processes, start: int) -> BatchStream:
    with _explained("data"):
        return BatchStream(
            config,
            Synthesis.from_config(config),
            group.device,
            start=start,
            rank=group.rank,
            world_size=group.world_size,
        )


def _prepare_folder(config: TrainConfig) -> None:
    with _explained("run"):
        for leftover in config.run.glob(f"{TEMPORARY_PREFIX}*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        # What was accepted once is not accepted for good.
        checkpoint = replace(config.checkpoint, allow_changes=False)
        save_config(replace(config, checkpoint=checkpoint), config.run / "config.yml")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
