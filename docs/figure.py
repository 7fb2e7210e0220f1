"""``python docs/figure.py PHOTO``: makes the README's input and its before/after picture.

The photograph is degraded at level "standard" by a seeded draw and restored by the shipped network;
a detail is shown beside bicubic interpolation and the original.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from dasr_ops.models.upscale import Upscaler
from dasr_ops.train.data import read_rgb
from dasr_ops.train.degradations import LEVELS, apply, sample

IMAGES = Path(__file__).resolve().parent / "images"
SCALE = 4
SEED = 3
DETAIL = (200, 120, 456, 376)  # left, top, right, bottom in the original


def main(photo: Path) -> None:
    """Write ``<name>_lr.png`` and ``<name>.png`` into docs/images."""
    pixels = read_rgb(photo)
    height, width = (side // SCALE * SCALE for side in pixels.shape[:2])
    original = Image.fromarray(pixels[:height, :width])
    gt = torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255
    params = sample(torch.Generator().manual_seed(SEED), 1, LEVELS["standard"])
    lr = (apply(params, gt, SCALE)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    IMAGES.mkdir(exist_ok=True)
    small = Image.fromarray(lr)
    small.save(IMAGES / f"{photo.stem}_lr.png")

    panels = {
        "bicubic": small.resize(original.size, Image.Resampling.BICUBIC),
        "dasr-ops": Upscaler.from_pretrained()(small),
        "original": original,
    }
    side = DETAIL[2] - DETAIL[0]
    figure = Image.new("RGB", (side * len(panels) + 8 * (len(panels) - 1), side + 20), "white")
    draw = ImageDraw.Draw(figure)
    for index, (name, picture) in enumerate(panels.items()):
        left = index * (side + 8)
        figure.paste(picture.crop(DETAIL), (left, 20))
        draw.text((left + 4, 4), name, fill="black")
    figure.save(IMAGES / f"{photo.stem}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
