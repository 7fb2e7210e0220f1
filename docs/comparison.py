"""``python docs/comparison.py PHOTOS``: details of validation pictures, restored, side by side.

PHOTOS is the validation folder of ``python -m dasr_ops.train.photos``. Degradations are the first
draws of ``dasr eval PHOTOS``. The rows are chosen to show what works and what does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from dasr_ops.bench.peers import X4PLUS, load
from dasr_ops.models.upscale import Upscaler
from dasr_ops.train.evaluate import Networks, network_methods
from dasr_ops.train.watch.samples import Sample, open_folder

OUTPUT = Path(__file__).resolve().parent / "images" / "comparison.jpg"
SCALE = 4
SIDE = 160
GAP = 6
ROWS = (
    # picture, level, left and top of the detail in the original
    ("coffee", "standard", 220, 150),
    ("chelsea", "weak", 120, 80),
    ("china", "standard", 250, 170),
    ("citrus-fruits", "severe", 200, 150),
)
"""What a row shows is described in docs/results.md."""


def main(photos: Path, peers: Path | None) -> None:
    """Write docs/images/comparison.jpg."""
    dasr = Upscaler.from_pretrained().model
    networks = Networks(dasr, peers={"x4plus": load(X4PLUS, peers)})
    methods = network_methods(["bicubic", "dasr", "x4plus"], networks, SCALE)
    titles = [*methods, "original"]
    width = len(titles) * (SIDE + GAP) - GAP
    figure = Image.new("RGB", (width, 20 + len(ROWS) * (SIDE + GAP) - GAP), "white")
    draw = ImageDraw.Draw(figure)
    for column, title in enumerate(titles):
        draw.text((column * (SIDE + GAP) + 2, 4), title, fill="black")
    for row, (name, level, left, top) in enumerate(ROWS):
        sample = _sample(photos, name, level)
        pictures = [restore(sample) for restore in methods.values()]
        for column, picture in enumerate([*pictures, sample.gt]):
            detail = _image(picture).crop((left, top, left + SIDE, top + SIDE))
            figure.paste(detail, (column * (SIDE + GAP), 20 + row * (SIDE + GAP)))
    figure.save(OUTPUT, quality=92, subsampling=0)


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
    main(options.photos, options.peers)
