"""Processes that share the work: under torchrun, or told apart by RANK and WORLD_SIZE alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from . import UsageError

_LONGEST_WAIT = timedelta(days=30)  # for another process that has more to do


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is.

    Attributes:
        rank: 0 for the first.
        world: how many there are.
        joined: whether they can talk to each other.
    """

    rank: int = 0
    world: int = 1
    joined: bool = False

    def wait(self) -> None:
        """Wait for all others to come here."""
        if self.joined:
            import torch.distributed

            torch.distributed.barrier()

    def sum(self, count: int) -> int:
        """Return the sum over all processes, after all have come here.

        torchrun ends all processes as soon as one has failed, so all fail together, at the end.
        """
        if not self.joined:
            return count
        import torch
        import torch.distributed

        total = torch.tensor(count)
        torch.distributed.all_reduce(total)
        return int(total)


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the processes for the ``with`` block, where there are several.

    Raises:
        UsageError: RANK and WORLD_SIZE make no sense.
    """
    names = ("RANK", "WORLD_SIZE")
    found = [os.environ.get(name) for name in names]
    if found == [None, None]:
        yield Ranks()
        return
    try:
        rank, world = (int(value) for value in found if value is not None)
        sensible = 0 <= rank < world
    except ValueError:
        sensible = False
    if not sensible:
        told = ", ".join(f"{name}={value}" for name, value in zip(names, found, strict=True))
        raise UsageError(f"expected 0 <= RANK < WORLD_SIZE in the environment, got {told}")
    if world == 1 or "MASTER_ADDR" not in os.environ:
        yield Ranks(rank, world)
        return
    import torch.distributed

    torch.distributed.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        yield Ranks(rank, world, joined=True)
    finally:
        torch.distributed.destroy_process_group()
