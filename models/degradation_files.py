"""Degradation vectors from JSON files, which people edit by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._messages import one_line
from ._tensor_files import StrPath

_MOST_BYTES = 1 << 26
_MOST = 1e30  # far below the end of float32, far above any sense


class DegradationError(ValueError):
    """A file without a usable degradation vector; the message is one line and names the file."""


def load_degradation(path: StrPath, scheme: str | None = None) -> Tensor:
    """Read the degradation vector of a file.

    Args:
        path: a JSON file: what ``dasr degrade`` writes beside a picture, what ``dasr inspect
            --json`` writes for one picture, any object with a key "v", or a plain list. The vector
            is a list of 33 numbers in the order of `dasr_ops.train.degradations.LAYOUT`, or an
            object that gives each entry by its name there.
        scheme: the scheme of labels of the network that is to be told. A file that names another
            is refused; one that names none is taken as it is.

    Returns:
        float32 [1, 33] on the CPU.

    Raises:
        DegradationError: the file is missing or unreadable, not JSON, has no vector or several,
            or of another length, numbers that are not finite, or another scheme.
    """
    path = Path(path)
    content = _read(path)
    picture, found = content, None
    if isinstance(content, Mapping):
        found = content.get("scheme")
        if "v" not in content and "pictures" in content:
            picture = _only(path, content["pictures"])
        if not isinstance(picture, Mapping) or "v" not in picture:
            raise DegradationError(
                f'{path}: expected a key "v" with the degradation vector, as in the files of dasr '
                "degrade and dasr inspect --json"
            )
        picture, found = picture["v"], picture.get("scheme", found)
    values = _values(path, picture)
    if scheme is not None and found is not None and found != scheme:
        raise DegradationError(
            f"{path}: its vector is of label scheme {found!r}, the network's is {scheme!r}"
        )
    return torch.tensor([values], dtype=torch.float32)


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DegradationError(f"{path}: too large for a file with a degradation vector")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DegradationError(f"{path}: no such file") from None
    except OSError as error:
        raise DegradationError(f"{path}: {one_line(error)}") from None
    except DegradationError:
        raise
    except UnicodeDecodeError:
        raise DegradationError(f"{path}: not JSON: not even text") from None
    except (ValueError, RecursionError) as error:
        raise DegradationError(f"{path}: not JSON: {one_line(error)}") from None


def _only(path: Path, pictures: Any) -> Any:
    if not isinstance(pictures, list) or not pictures:
        raise DegradationError(f'{path}: expected one picture under "pictures", found none')
    if len(pictures) > 1:
        raise DegradationError(
            f"{path}: expected the degradation vector of one picture, found those of "
            f"{len(pictures)}; run dasr inspect --json on one of them"
        )
    return pictures[0]


def _values(path: Path, v: Any) -> list[float]:
    from dasr_ops.train.degradations.vector import LAYOUT, NUM_LABELS

    if isinstance(v, Mapping):
        missing = [name for name in LAYOUT if name not in v]
        unknown = [name for name in v if name not in LAYOUT]
        for title, names in (("without", missing), ("with unknown", unknown)):
            if names:
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                shown = ", ".join(map(str, names[:4]))
                raise DegradationError(f"{path}: a degradation vector {title} {shown}{more}")
        v = [v[name] for name in LAYOUT]
    if not isinstance(v, list):
        raise DegradationError(
            f"{path}: expected a list of {NUM_LABELS} numbers, found {type(v).__name__}"
        )
    if len(v) == 1 and isinstance(v[0], list):  # a batch of one
        v = v[0]
    if len(v) != NUM_LABELS:
        raise DegradationError(f"{path}: expected {NUM_LABELS} numbers, found {len(v)}")
    for name, value in zip(LAYOUT, v, strict=True):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) <= _MOST:  # not a number, too, is refused
            text = json.dumps(value)[:40]
            raise DegradationError(f"{path}: {name}: expected a finite number, found {text}")
    return [float(value) for value in v]
