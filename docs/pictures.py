"""``python docs/pictures.py PHOTOS``: makes the pictures of the README and of docs/results.md.

PHOTOS is the validation folder of ``python -m dasr_ops.train.photos``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dasr_ops.bench.peers import X4PLUS, load
from dasr_ops.models import Upscaler, load_dasr
from dasr_ops.models.shipped import available, find_weights
from dasr_ops.train.data import read_rgb
from dasr_ops.train.degradations import LEVELS, apply, sample
from dasr_ops.train.evaluate import Networks, network_methods
from dasr_ops.train.watch.samples import Sample, open_folder

IMAGES = Path(__file__).resolve().parent / "images"
SCALE = 4
GAP = 6
TITLE = 20

# The README's: a photograph, the seed of its degradation, a detail (left, top, right, bottom).
EXAMPLE, EXAMPLE_SEED, EXAMPLE_DETAIL = "coffee", 3, (200, 120, 456, 376)

# Those of docs/results.md, which says what they show: photograph, level, left and top of a detail.
DETAIL_SIDE = 160
DETAILS = (
    ("coffee", "standard", 220, 150),
    ("chelsea", "weak", 120, 80),
    ("china", "standard", 250, 170),
    ("citrus-fruits", "severe", 200, 150),
)


def example(photo: Path) -> None:
    """Write the README's input, ``<name>_lr.png``, and its details, ``<name>.png``."""
    pixels = read_rgb(photo)
    height, width = (side // SCALE * SCALE for side in pixels.shape[:2])
    gt = torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255
    params = sample(torch.Generator().manual_seed(EXAMPLE_SEED), 1, LEVELS["standard"])
    lr = _image(apply(params, gt, SCALE).float())
    lr.save(IMAGES / f"{photo.stem}_lr.png")
    panels = {
        "bicubic": lr.resize((width, height), Image.Resampling.BICUBIC),
        **{name: Upscaler.from_pretrained(name)(lr) for name in available()},
        "original": _image(gt),
    }
    details = [picture.crop(EXAMPLE_DETAIL) for picture in panels.values()]
    _side_by_side(list(panels), [details]).save(IMAGES / f"{photo.stem}.png", optimize=True)


def details(photos: Path, peers: Path | None) -> None:
    """Write ``comparison.jpg``; degradations are the first draws of ``dasr eval PHOTOS``."""
    own = {name: load_dasr(find_weights(name)) for name in available()}
    networks = Networks(own, peers={"x4plus": load(X4PLUS, peers)})
    methods = network_methods(["bicubic", "dasr", "x4plus"], networks, SCALE)
    rows = []
    for name, level, left, top in DETAILS:
        drawn = _sample(photos, name, level)
        pictures = [*(restore(drawn) for restore in methods.values()), drawn.gt]
        box = (left, top, left + DETAIL_SIDE, top + DETAIL_SIDE)
        rows.append([_image(picture).crop(box) for picture in pictures])
    figure = _side_by_side([*methods, "original"], rows)
    figure.save(IMAGES / "comparison.jpg", quality=92, subsampling=0)


def _side_by_side(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return rows of pictures of one size below the titles of their columns."""
    width, height = (side + GAP for side in rows[0][0].size)
    size = (width * len(titles) - GAP, TITLE + height * len(rows) - GAP)
    figure = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(figure)
    for column, title in enumerate(titles):
        draw.text((column * width + 4, 4), title, fill="black")
        for row, pictures in enumerate(rows):
            figure.paste(pictures[column], (column * width, TITLE + row * height))
    return figure


def _sample(photos: Path, name: str, level: str) -> Sample:
    def fail(name: str, reason: str) -> None:
        raise SystemExit(f"{name}: {reason}")

    return next(iter(open_folder(photos, [level], SCALE).samples(name, fail)))


def _image(picture: Tensor) -> Image.Image:
    if picture.is_floating_point():
        picture = (picture.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(picture[0].permute(1, 2, 0).contiguous().numpy())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--peers", type=Path, help="folder of Real-ESRGAN's .param and .bin files")
    options = parser.parse_args()
    example(options.photos / f"{EXAMPLE}.png")
    details(options.photos, options.peers)
