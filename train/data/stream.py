"""The batches of a training run, one after the other, from any step on."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from dasr_ops.train.batch import Batch
from dasr_ops.train.config import TrainConfig

from .library import Library
from .pool import PairPool
from .samples import Samples
from .sources import open_source
from .workers import Item, ItemMaker, end_workers, start_items, start_worker, synthesize, unpack

if TYPE_CHECKING:
    from dasr_ops.train.synthesis import Synthesis

_PREFETCH = 4  # items that each worker is ahead
_MEANINGS = {
    "SIGBUS": ": shared memory is full (/dev/shm; docker run --shm-size enlarges it)",
    "SIGKILL": ": perhaps memory ran out; lower data.workers, or data.cache_bytes of each of them",
}


# Workers ignore the signal by which Python ends the processes that are left at its end.
_streams: weakref.WeakSet[BatchStream] = weakref.WeakSet()


@atexit.register  # after multiprocessing has: what is registered last is called first
def _close_all() -> None:
    for stream in list(_streams):
        stream.close()


class BatchStream(Iterator[Batch]):
    """Micro-batches on a device, without an end: `config.engine.accumulate` for each step.

    Part a of step t holds, on rank r, the samples
    ((t * accumulate + a) * world_size + r) * batch_size + b. What sample n is depends on the
    seed, on n and on the pictures alone (see `Samples`), whatever the number of workers and ranks
    and wherever the stream starts. Then the pairs go through a `PairPool`, if there is one.

    Pictures are read by `config.data.workers` processes, which start at once. They degrade too,
    with `config.data.synthesis` "loader", or "auto" and the device is a CPU; else the device does.
    A picture that cannot be read, or is smaller than a patch, is left out: rank 0 warns of it once.

    Args:
        config: seed, data, magnification and accumulated parts.
        synthesis: draws and applies degradations.
        device: where batches are wanted.
        start: first step.
        rank: of this process among `world_size`.
        world_size: processes that train together.

    Attributes:
        skipped: path and reason of each picture left out so far.
        wait_seconds: time spent waiting for pictures.

    Raises:
        ValueError: nothing usable at `config.data.train`, a pool smaller than a batch, bad numbers.
        ImportError: a database is to be read, and the package lmdb is missing.
    """

    def __init__(
        self,
        config: TrainConfig,
        synthesis: Synthesis,
        device: torch.device | str,
        *,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        data = config.data
        self._items: Any = None
        self._owner = os.getpid()
        self.skipped: dict[Path, str] = {}
        self.wait_seconds = 0.0
        self._synthesis, self._rank, self._device = synthesis, rank, torch.device(device)
        _check(config, start, rank, world_size)

        sources = [open_source(path, data.root, "data.train") for path in data.train]
        library = Library(sources, data.patch_size, data.cache_bytes)
        samples = Samples(library, data, config.network.upscale, config.seed)
        self.pictures = len(library)
        self._pool = PairPool(data.pool_size, config.seed, rank) if data.pool_size else None
        where = data.synthesis
        if where == "auto":
            where = "loader" if self._device.type == "cpu" else "device"
        self._maker = ItemMaker(
            samples,
            synthesis,
            data.batch_size,
            rank=rank,
            world_size=world_size,
            degrade=where == "loader",
        )
        self._items = self._start(start * config.engine.accumulate, data.workers)
        _streams.add(self)

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        """Return the next micro-batch.

        Raises:
            StopIteration: the stream was closed.
            RuntimeError: no picture can be used, or a process that reads them was killed.
        """
        if self._items is None:
            raise StopIteration
        item = self._next_item()
        for path, reason in item.skipped:
            self._skip(Path(path), reason)
        if item.failure:
            self.close()
            raise RuntimeError(f"data.train: {item.failure}")
        batch = self._batch(item)
        return batch if self._pool is None else self._pool.exchange(batch)

    def state_dict(self) -> dict[str, Any]:
        """Return what cannot be computed again from `start`: the pool, if there is one."""
        return {} if self._pool is None else {"pool": self._pool.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the pool of a stream that was stopped at this one's `start`.

        A pool of another size is fitted; without a pool, here or there, nothing is taken over.

        Raises:
            ValueError: not what `state_dict` returned.
        """
        if self._pool is not None and "pool" in state:
            self._pool.load_state_dict(state["pool"])

    def close(self) -> None:
        """End the processes; nothing comes any more. May be called again."""
        items, self._items = self._items, None
        if items is None or os.getpid() != self._owner:  # a fork's copy
            return
        end_workers(items)

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, first: int, workers: int) -> Iterator[Item]:
        loader = DataLoader(
            self._maker,  # type: ignore[arg-type]
            batch_size=None,
            sampler=itertools.count(first),
            num_workers=workers,
            collate_fn=_same,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=start_worker,
            prefetch_factor=_PREFETCH if workers else None,
            generator=torch.Generator(),  # it would draw from the global one
        )
        return start_items(loader)

    def _next_item(self) -> Item:
        began = time.perf_counter()
        try:
            return next(self._items)
        except (RuntimeError, OSError, EOFError) as error:
            killed = _explain(self._items)  # what breaks depends on where it was
            if not killed:
                raise
            self.close()
            raise RuntimeError(killed) from error
        finally:
            self.wait_seconds += time.perf_counter() - began

    def _batch(self, item: Item) -> Batch:
        if item.batch is not None:
            return item.batch.to(self._device)
        corners, params = unpack(item.drawn)
        sources, corners = (
            tensor.to(self._device, non_blocking=True) for tensor in (item.sources, corners)
        )
        return synthesize(self._synthesis, sources, corners, params)

    def _skip(self, path: Path, reason: str) -> None:
        if path not in self.skipped:
            self.skipped[path] = reason
            if self._rank == 0:
                warnings.warn(f"skipping {path}: {reason}", stacklevel=3)


def _check(config: TrainConfig, start: int, rank: int, world_size: int) -> None:
    if start < 0:
        raise ValueError(f"start: expected 0 or more, got {start}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank: expected 0..world_size - 1 = {world_size - 1}, got {rank}")
    if not config.data.train:
        raise ValueError(
            "data.train: expected at least one folder, LMDB database or list of pictures, got none"
        )
    pool, batch = config.data.pool_size, config.data.batch_size
    if 0 < pool < batch:
        raise ValueError(
            f"data.pool_size: expected 0 or at least data.batch_size = {batch}, got {pool}"
        )


def _explain(items: object) -> str:
    """Return which worker died, and what that often means; nothing if none did."""
    workers = getattr(items, "_workers", ())
    ended = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1)
    if not ended:
        return ""
    worker = next(worker for worker in workers if worker.sentinel in ended)
    worker.join(1)  # it is on its way
    text = f"a process that reads pictures (pid {worker.pid}) ended with code {worker.exitcode}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-worker.exitcode).name
        return f"{text}, {name}{_MEANINGS.get(name, '')}"
    return text


def _same(item: Item) -> Item:
    return item
