"""What an evaluation has found so far, in a file, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dasr_ops.models.files import atomic_path

from .run import Found, Record

JOURNAL_SUFFIX = ".partial"
"""Of the file beside a report."""


class Journal:
    """A file with a line for what an evaluation is, and one for each picture that is done.

    Args:
        path: the file; one of another evaluation is replaced by the first picture.
        key: all that the results depend on; anything that JSON holds.

    Attributes:
        error: why the file could not be written, or None. Nothing is written after it.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path, self.error = path, None
        self._head = json.dumps(key, sort_keys=True)
        self._done = _read(path, self._head)
        self._begun = False

    def __len__(self) -> int:
        return len(self._done)

    def get(self, name: str) -> Found | None:
        """Return what was found of a picture, or None."""
        return self._done.get(name)

    def add(self, name: str, found: Found) -> None:
        """Remember what was found of a picture; what failed is tried again the next time."""
        if self.error is not None or found.failed:
            return
        self._done[name] = found
        try:
            if self._begun:
                self._append(_line(name, found))
            else:  # anew: what a kill left of a line may stand at the end of the old one
                lines = [self._head, *(_line(*item) for item in self._done.items())]
                with atomic_path(self.path) as temporary:
                    temporary.write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")
                self._begun = True
        except OSError as error:
            self.error = error.strerror or str(error)

    def remove(self) -> None:
        """Remove the file; the evaluation is complete."""
        self.path.unlink(missing_ok=True)

    def _append(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())


def network_digest(*networks: nn.Module | None) -> str:
    """Return a hash of the weights of networks."""
    digest = hashlib.sha256()
    for network in networks:
        digest.update(b"\0network")
        for name, tensor in (network.state_dict() if network is not None else {}).items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def file_digest(paths: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and times of files; one that is missing has neither."""
    digest = hashlib.sha256()
    for path in paths:
        stamp = (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        digest.update(f"{path}\0{stamp}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _line(name: str, found: Found) -> str:
    records = [vars(record) for record in found.records]
    return json.dumps({"name": name, "records": records, "vectors": found.vectors})


def _read(path: Path, head: str) -> dict[str, Found]:
    """Return what a file holds for an evaluation: nothing if it is of another, or damaged."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return {}
    done = {}
    if lines[0] == head:
        for line in lines[1:-1]:  # the last is empty, or what a kill left of one
            try:
                content = json.loads(line)
                records = [Record(**record) for record in content["records"]]
                done[content["name"]] = Found(records, {}, content["vectors"])
            except (ValueError, KeyError, TypeError):
                break
    return done
