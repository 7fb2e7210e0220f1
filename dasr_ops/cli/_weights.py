"""``--weights`` of the commands: which files they are, and an upscaler made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import UsageError

if TYPE_CHECKING:
    from dasr_ops.models import DASR
    from dasr_ops.models.upscale import Upscaler

# models.shipped has the names too, behind the import of PyTorch, for which no help should wait.
NAMES_HELP = (
    "small, small-gan, dasr or dasr-gan (weights of the package, as far as this build has them)"
)
WEIGHTS_HELP = f"{NAMES_HELP}, one .safetensors file, or the .pth files of G and P. Default: small."

CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


def separate(
    weights: Sequence[Path], inputs: Sequence[Path]
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Hand back the pictures that follow ``--weights``, which takes as many names as there are.

    Returns:
        The one or two files of weights, or none, and the inputs.

    Raises:
        UsageError: the first name is not one of weights, or this build lacks it.
    """
    if weights:
        check_checkpoint(weights[0])
    count = _count(weights)
    return find(weights[:count]), (*inputs, *weights[count:])


def _count(values: Sequence[Path]) -> int:
    """Return how many of the values of ``--weights`` are weights: a name, or one or two files.

    What follows is a picture or a folder, whatever its name.
    """
    if not values or not is_checkpoint(values[0]):
        return 0
    two = len(values) > 1 and values[0].suffix and values[1].suffix
    return 2 if two and is_checkpoint(values[1]) else 1


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like one of weights, or is the name of weights in the package."""
    if path.suffix:
        return path.suffix.lower() in CHECKPOINT_SUFFIXES
    from dasr_ops.models.shipped import NAMES

    return str(path) in NAMES


def check_checkpoint(path: Path) -> None:
    """Raise UsageError unless `is_checkpoint`."""
    if not is_checkpoint(path):
        from dasr_ops.models.shipped import NAMES

        raise UsageError(
            f"--weights {path}: expected {', '.join(NAMES)} or a name that ends in one of "
            f"{' '.join(CHECKPOINT_SUFFIXES)}"
        )


def find(weights: Sequence[Path]) -> tuple[Path, ...]:
    """Return the files of weights, some of which may be names of those in the package.

    Raises:
        UsageError: this build lacks one.
    """
    return tuple(path if path.suffix else _shipped(path) for path in weights)


def grouped(weights: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Return the files of each network: one, or the two ``.pth`` files that follow each other.

    Raises:
        UsageError: a file is not one of weights, or a ``.pth`` file is alone.
    """
    groups: list[tuple[Path, ...]] = []
    pending: Path | None = None
    for path in weights:
        check_checkpoint(path)
        if path.suffix.lower() == ".safetensors":
            single: tuple[Path, ...] = (path,)
        elif pending is None:
            pending = path
            continue
        else:
            single = (pending, path)
            pending = None
        if pending is not None:
            break
        groups.append(single)
    if pending is not None:
        raise UsageError(
            f"--weights {pending}: expected the .pth files of G and P after each other"
        )
    return groups


def short_names(groups: Sequence[tuple[Path, ...]]) -> list[str]:
    """Return names of networks, with as much of the folders as tells them apart."""
    paths = [group[0] for group in groups]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number}. {path.stem}" for number, path in enumerate(paths, 1)]


def load_networks(weights: Sequence[Path]) -> dict[str, DASR]:
    """Load networks, by the names that tell them apart.

    Raises:
        UsageError: see `grouped`, or one cannot be loaded.
    """
    from dasr_ops.models import CheckpointError, load_dasr

    if len(weights) == 1:
        check_checkpoint(weights[0])
        groups = [tuple(weights)]  # which may hold both networks, whatever its kind
    else:
        groups = grouped(weights)
    names = short_names(groups)
    try:
        return {name: load_dasr(*paths) for name, paths in zip(names, groups, strict=True)}
    except CheckpointError as error:
        raise UsageError(f"--weights: {error}") from None


def default() -> Path:
    """Return the file of the package's own weights.

    Raises:
        UsageError: this build has none.
    """
    return _shipped(None)


def every() -> tuple[Path, ...]:
    """Return the files of all weights of the package, the default first.

    Raises:
        UsageError: this build has none.
    """
    from dasr_ops.models.shipped import available, find_weights

    first = default()
    return first, *(path for path in map(find_weights, available()) if path != first)


def _shipped(path: Path | None) -> Path:
    from dasr_ops.models.checkpoint import CheckpointError
    from dasr_ops.models.shipped import find_weights

    try:
        return find_weights(path)
    except CheckpointError as error:
        raise UsageError(f"--weights: {error}") from None


def load_upscalers(
    weights: Sequence[Path], devices: Sequence[str | None], **settings: Any
) -> list[Upscaler]:
    """Load the networks, the package's own where no weights are given, for each device.

    Args:
        weights: one or two files, or none.
        devices: names of devices, None for the best there is; at least one.
        **settings: of `Upscaler`.

    Raises:
        UsageError: the weights, a device or a setting cannot be used.
    """
    import copy

    from dasr_ops.models import upscale
    from dasr_ops.models.checkpoint import CheckpointError

    try:
        first = upscale.Upscaler.from_pretrained(weights or None, device="cpu", **settings)
    except CheckpointError as error:
        raise UsageError(f"--weights: {error}") from None
    except ValueError as error:
        raise UsageError(str(error).removeprefix("Upscaler: ")) from None
    upscalers = []
    for number, device in enumerate(devices):
        if device is not None and device.startswith("meta"):  # which computes nothing
            raise UsageError(f"--device {device}: expected cpu, cuda, cuda:1, mps ...")
        model = first.model if number == 0 else copy.deepcopy(first.model)
        try:
            upscalers.append(upscale.Upscaler(model, device=device, **settings))
        except (RuntimeError, AssertionError) as error:
            if device is None:
                raise
            first_line = str(error).strip().splitlines()[0]
            raise UsageError(f"--device {device}: {first_line}") from None
    return upscalers
