"""What the processes of a loader do: make what a stream takes, and end when they should."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from dasr_ops.train.batch import Batch

from .library import NoPictureError
from .samples import Sample, Samples

_NEWS = 50  # bad pictures told with one item
_PATROL = 1.0  # seconds between two looks for the parent


@dataclass(eq=False)
class Item:
    """A micro-batch on its way to the main process, degraded or ready to be.

    Attributes:
        batch: the pairs, if they were degraded here.
        sources: else what is to be degraded, uint8 [B, 3, S, S].
        drawn: and how: corners int64 [B, 2] and the parameters, see `pack`.
        skipped: path and reason of pictures that this process found bad.
        failure: why there is neither.
    """

    batch: Batch | None = None
    sources: Tensor | None = None
    drawn: bytes = b""
    skipped: tuple[tuple[str, str], ...] = ()
    failure: str = ""

    def pin_memory(self) -> Item:
        """Move the pictures to page-locked memory; `torch.utils.data.DataLoader` calls it."""
        self.batch = self.batch and self.batch.pin_memory()
        self.sources = self.sources if self.sources is None else self.sources.pin_memory()
        return self


class ItemMaker:
    """Micro-batches of one rank by their number, for a `torch.utils.data.DataLoader`.

    Args:
        samples: what sample n is.
        synthesis: draws and applies degradations.
        batch_size: samples of an item.
        rank, world_size: item i holds the samples (i * world_size + rank) * batch_size + b.
        degrade: whether to apply the degradations here.
    """

    def __init__(
        self,
        samples: Samples,
        synthesis: Any,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        degrade: bool = True,
    ) -> None:
        self.samples, self.synthesis, self.batch_size = samples, synthesis, batch_size
        self.rank, self.world_size, self.degrade = rank, world_size, degrade
        self._told = 0

    def __getitem__(self, number: int) -> Item:
        """Make an item; that no picture can be used is told in it."""
        first = (number * self.world_size + self.rank) * self.batch_size
        try:
            samples = [self.samples[first + b] for b in range(self.batch_size)]
        except NoPictureError as error:
            return Item(failure=str(error))
        item = self._item(samples)
        item.skipped = self._news()
        return item

    def _item(self, samples: list[Sample]) -> Item:
        sources = torch.stack([sample.source for sample in samples])
        corners = torch.tensor([sample.corner for sample in samples], dtype=torch.int64)
        params = self.synthesis.draw([sample.seed for sample in samples])
        if not self.degrade:
            return Item(sources=sources, drawn=pack((corners, params)))
        return Item(batch=synthesize(self.synthesis, sources, corners, params))

    def _news(self) -> tuple[tuple[str, str], ...]:
        library = self.samples.library
        news = list(library.skipped.items())[self._told : self._told + _NEWS]
        self._told += len(news)
        return tuple((os.fspath(library.path(index)), why) for index, why in news)


def synthesize(synthesis: Any, sources: Tensor, corners: Tensor, params: Any) -> Batch:
    """Degrade, on a CPU with one thread: sums could depend on their number."""
    with torch.no_grad(), _one_thread() if sources.device.type == "cpu" else _nothing():
        return synthesis(sources, corners, params)


def pack(value: object) -> bytes:
    """Pickle with small CPU tensors inside of the bytes.

    As parts of an item each would be sent through a shared memory file of its own, and the files
    open at once are limited.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


unpack = pickle.loads
"""The inverse of `pack`."""


def start_worker(worker: int) -> None:
    """Do what a worker does first: leave signals to the main process, and watch over it.

    Ctrl-C, and the SIGTERM that torchrun or a cluster's scheduler send to all processes of a job,
    reach workers too; they go on, so that the main process can finish its step and save. They end
    when it tells them to, and when it is gone, even if what they have made fills the pipe to it.
    Whoever starts them must kill those that do not end when told.

    Args:
        worker: number of this worker.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What Pillow says about metadata and large pictures; bad ones are told by the stream.
    warnings.filterwarnings("ignore", module=r"PIL\.|dasr_ops\.models\.pictures")
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def start_items(loader: DataLoader) -> Iterator[Any]:
    """Start the processes of a loader and return its iterator.

    PyTorch's handler of SIGCHLD lets an exception break out anywhere in the program when a process
    that it knows dies. It forgets these: whoever waits for an item finds out.
    """
    items = iter(loader)
    forget = getattr(signal_handling, "_remove_worker_pids", None)
    if forget is not None and getattr(items, "_worker_pids_set", False):
        forget(id(items))
        items._worker_pids_set = False
    return items


def end_workers(items: Any) -> None:
    """End the processes behind an iterator of a `torch.utils.data.DataLoader`."""
    # It does the same when it is deleted, but a traceback may hold it.
    shutdown = getattr(items, "_shutdown_workers", None)
    if shutdown is not None:
        shutdown()
    for worker in getattr(items, "_workers", ()):
        if worker.is_alive():
            worker.kill()
            worker.join()


def _watch(parent: int) -> None:
    # Both: forks hold each other's pipe to the main process; with forkserver it is no parent.
    main = multiprocessing.parent_process()
    while os.getppid() == parent and (main is None or main.is_alive()):
        time.sleep(_PATROL)
    os._exit(1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_nothing = contextlib.nullcontext


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if type(value) is Tensor and value.device.type == "cpu":
            with contextlib.suppress(TypeError):  # bfloat16 has no counterpart in NumPy
                return _tensor, (value.detach().numpy(),)
        return NotImplemented


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(values)
