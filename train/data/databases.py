"""Reading LMDB databases of pictures, in BasicSR's layout."""

from __future__ import annotations

import io
import os
import weakref
from pathlib import Path
from typing import Any

from .meta_info import META_INFO, read_lines

_DATA = "data.mdb"

# LMDB allows one environment for a database in a process, and none that was opened before a fork.
_environments: weakref.WeakValueDictionary[tuple[int, str], Any] = weakref.WeakValueDictionary()


def import_lmdb() -> Any:
    """Return the module `lmdb`.

    Raises:
        ImportError: it is not installed; the message says how to get it.
    """
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            "LMDB databases need the package lmdb: pip install 'dasr-ops[train]'"
        ) from error
    return lmdb


def is_database(path: Path) -> bool:
    """Return whether a path is, or claims to be, a database."""
    return path.is_dir() and (path.suffix.lower() == ".lmdb" or (path / _DATA).is_file())


class LmdbSource:
    """Pictures in an LMDB database.

    Keys are names without their ending, values encoded pictures; ``meta_info.txt`` in the folder
    lists them as ``name.png (height,width,channels) level``. Without that file all keys are taken,
    in their order. It is opened read-only, without locks, anew in each process that reads from it.

    Args:
        path: folder of the database.
        name: what error messages call the argument.

    Raises:
        ValueError: not a database, or an empty one.
        ImportError: the package lmdb is missing.
    """

    def __init__(self, path: str | Path, name: str = "path") -> None:
        self.root = Path(path)
        self._opened: tuple[int, Any] | None = None
        lmdb = import_lmdb()
        if not (self.root / _DATA).is_file():
            raise ValueError(
                f"{name}: expected an LMDB database, got {path}, which holds no {_DATA}"
            )
        try:
            with self._environment().begin() as transaction:
                self.names = self._names(transaction, name)
        except lmdb.Error as error:
            raise ValueError(f"{name}: {path} cannot be read as LMDB database: {error}") from None
        finally:
            self._opened = None  # processes that are forked from this one open it themselves
        if not self.names:
            raise ValueError(f"{name}: expected an LMDB database of pictures, got an empty {path}")

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def path(self, index: int) -> Path:
        """Return the path of the database with the picture's name behind it."""
        return self.root / self.names[index]

    def open(self, index: int) -> io.BytesIO:
        """Return an encoded picture.

        Raises:
            OSError: it is not in the database, or that is damaged.
        """
        name = self.names[index]
        stem = os.path.splitext(name)[0]
        try:
            with self._environment().begin() as transaction:
                for key in (stem, name):
                    value = transaction.get(key.encode()) if key else None
                    if value is not None:
                        return io.BytesIO(value)
        except import_lmdb().Error as error:
            raise OSError(str(error)) from None
        raise OSError(f"the database has no key {stem!r}")

    def _names(self, transaction: Any, name: str) -> list[str]:
        listed = self.root / META_INFO
        if listed.is_file():
            return read_lines(listed, name)
        keys = transaction.cursor().iternext(keys=True, values=False)
        return [key.decode(errors="replace") for key in keys]

    def _environment(self) -> Any:
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            self._opened = process, _open(os.path.realpath(self.root))
        return self._opened[1]


def _open(path: str) -> Any:
    process = os.getpid()
    for (owner, other), inherited in list(_environments.items()):
        if other == path and owner != process:
            inherited.close()  # this process's copy
    environment = _environments.get((process, path))
    if environment is None:
        environment = import_lmdb().open(
            path, readonly=True, lock=False, readahead=False, meminit=False
        )
        _environments[process, path] = environment
    return environment
