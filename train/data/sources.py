"""Where pictures come from: folders, lists, databases."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from .databases import LmdbSource, is_database
from .meta_info import read_lines
from .pictures import picture_suffixes


class Source(Protocol):
    """Encoded pictures in a fixed order."""

    names: Sequence[str]
    """What the source calls them."""

    def __len__(self) -> int:
        """Return the number of pictures, readable or not."""
        ...

    def path(self, index: int) -> Path:
        """Return what a picture is called in messages."""
        ...

    def open(self, index: int) -> Path | BinaryIO:
        """Return what `read_rgb` takes. Raises OSError."""
        ...


class FileSource:
    """Picture files.

    Args:
        root: where relative names begin.
        names: paths of the files.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Return the path of a picture."""
        return self.root / self.names[index]

    open = path


def open_source(path: str | Path, root: str | Path | None = None, name: str = "path") -> Source:
    """Find the pictures of a folder, a list, a database, or a single picture; decode none.

    A folder is searched recursively for the endings that Pillow can read, in sorted order, links
    followed, hidden files and folders left out. A list is a text file with one picture to a line;
    sizes as BasicSR writes them (``0001.png (1356,2040,3)``), empty lines and lines that begin with
    ``#`` are ignored. A database is a folder in BasicSR's LMDB layout, see `LmdbSource`.

    Args:
        path: of the source.
        root: where the paths of a list begin; default: its folder.
        name: what error messages call the argument.

    Raises:
        ValueError: nothing there, nothing in it, or not what it says it is.
        ImportError: a database, and the package lmdb is missing.
    """
    path = Path(path)
    if is_database(path):
        return LmdbSource(path, name)
    if path.is_dir():
        names = list_pictures(path)
        if not names:
            raise ValueError(
                f"{name}: expected a folder of pictures, got {path}, where no file that is not "
                f"hidden ends in one of {' '.join(sorted(picture_suffixes()))} "
                "(subfolders were searched)"
            )
        return FileSource(path, names)
    if not path.is_file():
        problem = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise ValueError(
            f"{name}: expected a folder, an LMDB database or a list of pictures, "
            f"got {path}, which {problem}"
        )
    if path.suffix.lower() in picture_suffixes():
        return FileSource(path.parent, [path.name])
    return _open_list(path, path.parent if root is None else Path(root), name)


def list_pictures(folder: Path) -> list[str]:
    """Return the pictures below a folder as paths relative to it, sorted by their parts."""
    suffixes = picture_suffixes()
    return [name for name in _walk(folder, "", set()) if _suffix(name) in suffixes]


def _open_list(path: Path, root: Path, name: str) -> FileSource:
    names = read_lines(path, name)
    if not names:
        raise ValueError(f"{name}: expected a list of pictures, got {path}, which lists none")
    if not root.is_dir():
        raise ValueError(f"{name}: paths in {path} begin at {root}, which is not a folder")
    source = FileSource(root, names)
    # Single files that are missing are found while training; a wrong root is said at once.
    if not any(source.path(index).exists() for index in range(len(source))):
        raise ValueError(
            f"{name}: none of the {len(names)} pictures that {path} lists exists; "
            f"the first was looked for at {source.path(0)}"
        )
    return source


def _walk(folder: Path | str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:  # such as lost+found
        warnings.warn(f"not searched: {folder}: {error.strerror or error}", stacklevel=2)
        return
    if (status.st_dev, status.st_ino) in seen:  # links may lead round in a circle
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _holds(entry.is_dir):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", seen)
        elif _holds(entry.is_file):
            yield prefix + entry.name


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself, a share that is gone
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
