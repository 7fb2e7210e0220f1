"""The processes of a run: one by itself, or those that torchrun started."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dasr_ops.models._messages import one_line

from .errors import TrainingError

_TIMEOUT = timedelta(hours=2)  # the others wait while the first process validates


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: number of this process, from 0.
        world_size: how many there are.
        device: where this process computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.many:
            dist.barrier()

    def sums(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Add up scalars over all processes and fetch them: the one synchronisation of a step.

        Raises:
            TrainingError: another process is gone.
        """
        stacked = torch.stack([value.detach().double() for value in values.values()])
        if self.many:
            try:
                dist.all_reduce(stacked)
            except RuntimeError as error:
                raise _ended(error) from error
        return dict(zip(values, stacked.tolist(), strict=True))

    def agree(self, value: int) -> bool:
        """Return whether all processes have the same number; all get the same answer."""
        if not self.many:
            return True
        extremes = torch.tensor([value, -value], device=self.device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
        most, least = extremes.tolist()
        return most == -least


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one.

    Raises:
        TrainingError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(
            f"engine.device: expected auto, cpu, cuda or cuda:N, got {name!r}"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise TrainingError(f"engine.device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TrainingError(f"engine.device: {name}: no GPU that this PyTorch can use")
        if device.index is None:
            device = torch.device("cuda", 0 if local_rank is None else local_rank)
        count = torch.cuda.device_count()
        if device.index >= count:
            raise TrainingError(f"engine.device: {device}: there are {count} GPUs")
    return device


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    Args:
        device: setting of the device.

    Raises:
        TrainingError: there is no such device; from the block, if another process has ended.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        chosen = choose_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        yield Processes(0, 1, chosen)
        return
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", device_id=chosen, timeout=_TIMEOUT)
    else:
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
    except RuntimeError as error:
        _leave_at_once()
        reason = explain(error)
        if reason is error:
            raise
        raise reason from error
    except BaseException:
        _leave_at_once()
        raise
    else:
        dist.destroy_process_group()


def end_threads() -> None:
    """End the threads of processes that were left.

    They live as long as a network that was distributed, and that is in cycles of references. If
    such a thread needs the interpreter while that ends, the program is aborted.
    """
    if "RANK" in os.environ:
        gc.collect()


def explain(error: Exception) -> Exception:
    """Return a `TrainingError` where the reason is that another process is gone, else `error`."""
    if isinstance(error, TrainingError):
        return error
    if isinstance(error, dist.DistError) or "gloo" in str(error):
        return _ended(error)
    return error


def _ended(error: RuntimeError) -> TrainingError:
    return TrainingError(f"another process of the run has ended: {one_line(error, 120)}")


def _leave_at_once() -> None:
    """Leave without the others, who notice it.

    With nccl, leaving in the usual way waits for what they have begun together, and torchrun, which
    would end them, waits for this process.
    """
    if dist.get_backend() != "nccl":
        dist.destroy_process_group()
        return
    abort = getattr(dist.distributed_c10d, "_abort_process_group", None)
    if abort is not None:  # else it happens at the end of the program
        abort()
