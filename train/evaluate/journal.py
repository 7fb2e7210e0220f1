"""What an evaluation has found so far, in a file, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from dasr_ops.models.files import atomic_path

from .run import Found, Record

JOURNAL_SUFFIX = ".partial"
"""Of the file beside a report."""


class Journal:
    """A file with a line for what an evaluation is, and one for each picture that is done.

    Two evaluations may use one path at a time: the later one replaces the file, and the other goes
    on without being remembered.

    Args:
        path: the file; one of another evaluation is replaced by the first picture.
        key: all that the results depend on; anything that JSON holds.

    Attributes:
        error: why the file could not be written, or None. Nothing is written after it.
        differs: names in ``key`` that are not those of the evaluation that the file was of.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self.path = path
        self.error: str | None = None
        self._head = json.dumps(key, sort_keys=True)
        head, self._done = _read(path)
        self.differs = _differs(head, self._head)
        if self.differs:
            self._done = {}
        self._file: TextIO | None = None

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
            if self._file is None:
                self._file = self._begun()
            else:
                self._file.write(_line(name, found))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.error = error.strerror or str(error)

    def remove(self) -> None:
        """Remove the file, if it is still of this evaluation, which is complete.

        Raises:
            OSError: it cannot be removed.
        """
        if self._file is None:
            own = bool(self._done)  # all was done before
        else:
            own = self._is_own()
            self._file.close()
        if own:
            self.path.unlink(missing_ok=True)

    def _begun(self) -> TextIO:
        # Anew: what a kill left of a line may stand at the end of the old file.
        with atomic_path(self.path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(f"{self._head}\n")
            file.writelines(_line(*item) for item in self._done.items())
        return self.path.open("a", encoding="utf-8")  # and kept: by its name it may become another

    def _is_own(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False


def file_digest(paths: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and times of files; one that is missing has neither."""
    digest = hashlib.sha256()
    for path in paths:
        stamp = None
        with suppress(OSError):
            state = path.stat()
            stamp = (state.st_size, state.st_mtime_ns)
        digest.update(f"{path}\0{stamp}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def source_digest() -> str:
    """Return a hash of the names, sizes and times of the package's own files of code."""
    found = []
    for package in ("dasr_ops", "dasr_ops.models", "dasr_ops.train"):
        for folder in importlib.util.find_spec(package).submodule_search_locations:
            suffixes = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
            found += (path for path in Path(folder).rglob("*") if path.name.endswith(suffixes))
    return file_digest(sorted(set(found)))


def _line(name: str, found: Found) -> str:
    records = [vars(record) for record in found.records]
    return json.dumps({"name": name, "records": records, "vectors": found.vectors}) + "\n"


def _read(path: Path) -> tuple[str | None, dict[str, Found]]:
    """Return what a file is of, and what it holds as far as it is whole."""
    try:
        head, *lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return None, {}
    done = {}
    for line in lines[:-1]:  # the last is empty, or what a kill left of one
        try:
            content = json.loads(line)
            records = [Record(**record) for record in content["records"]]
            done[content["name"]] = Found(records, {}, content["vectors"])
        except (ValueError, KeyError, TypeError):
            break
    return head, done


def _differs(old: str | None, new: str) -> list[str]:
    if old is None or old == new:
        return []
    before, now = {}, json.loads(new)
    with suppress(ValueError):
        before = json.loads(old)
    if not isinstance(before, dict):
        before = {}
    return sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
