"""What the tests of ``dasr eval`` share: pictures, pairs, and what a report holds."""

from __future__ import annotations

import csv
import json

import numpy as np
from PIL import Image

from dasr_ops.cli import main


def picture(path, size=(64, 52), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (12, 11, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def shrunk(source, target, scale=4):
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        size = (image.width // scale, image.height // scale)
        image.crop((0, 0, size[0] * scale, size[1] * scale)).resize(size).save(target)


def pairs(folder, scale=4, suffix=""):
    for name, size in (("a", (64, 52)), ("deep/b", (51, 63))):
        gt = picture(folder / "gt" / f"{name}.png", size, seed=len(name))
        shrunk(gt, folder / "lr" / f"{name}{suffix}.png", scale)


def run(*arguments):
    return main(["eval", *map(str, arguments)])


def read(output):
    content = json.loads(output.with_name(output.name + ".json").read_text())
    with open(output.with_name(output.name + ".csv"), newline="") as file:
        return content, list(csv.DictReader(file))
