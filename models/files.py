"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_PREFIX = ".dasr-ops-"
"""How names of temporary files begin; a killed process may leave one behind."""


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """Give the ``with`` block a temporary file beside ``path`` that takes its place at the end.

    The file exists, empty, with the permissions of a new file. If the block raises, Ctrl-C
    included, it is removed, and ``path`` stays as it was; so it does if the process is killed.

    Args:
        path: the final name; its folder must exist.
        replace: whether an existing file is replaced.

    Raises:
        FileExistsError: ``replace`` is False and ``path`` exists.
        OSError: the folder cannot be written to.
    """
    final = Path(path)
    if final.is_dir():
        raise IsADirectoryError(f"{final} is a folder")
    temporary = final.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}.tmp"
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # some writers replace the file by a private one of theirs
        _sync(temporary)
        if not replace and final.exists():
            raise FileExistsError(f"{final} exists")
        os.replace(temporary, final)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _sync(path: Path) -> None:
    # Without this a power failure may keep the new name and lose the content. Windows refuses to
    # sync a file that is open for reading only.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
