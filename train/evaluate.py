"""``python -m dasr_ops.train.evaluate PHOTOS``: the table of a model beside its yardsticks.

Every photograph is degraded at each condition by seeded draws, restored by each method, and
compared with the original on the Y channel (4 pixels of border cut). DASR is listed three times:
as it is, told the true degradation vector, and held at the mean vector, which shows what the
adaptation is worth.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor
from tqdm import tqdm

from dasr_ops.models import load_dasr, load_srresnet
from dasr_ops.models.files import atomic_path
from dasr_ops.models.upscale import DEFAULT_WEIGHTS

from .data import read_rgb
from .degradations import LEVELS, apply, labels, sample
from .metrics import psnr_y, ssim_y

SCALE = 4
CONDITIONS = ("clean", "weak", "standard")
Method = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Config:
    """What to compare.

    Attributes:
        photos: folder of validation photographs.
        weights: DASR, one .safetensors or the two .pth files of G and P; default: the shipped ones.
        static: SRResNet of the same body, trained the same way.
        draws: degradations of each photograph at each condition but "clean", which has one.
        seed: of the draws.
        output: where the table goes, .md and .json; default: printed only.
    """

    photos: tyro.conf.Positional[Path]
    weights: tuple[Path, ...] = ()
    static: Path | None = None
    draws: int = 3
    seed: int = 0
    output: Path | None = None


def mean_vector(conditions: Sequence[str] = CONDITIONS, samples: int = 4096) -> Tensor:
    """Return the mean of v [33] over an even mixture of the conditions."""
    generator = torch.Generator().manual_seed(0)
    params = sample(generator, samples, {name: 1.0 for name in conditions})
    return labels(params).mean(0)


def methods(config: Config) -> dict[str, Method]:
    """Return the methods to compare: functions of LR [1, 3, H, W] and its true v [1, 33]."""

    def bicubic(lr: Tensor, v: Tensor) -> Tensor:
        # With antialias the kernel is that of Pillow and MATLAB (a = -0.5), not OpenCV's.
        return F.interpolate(lr, scale_factor=SCALE, mode="bicubic", antialias=True)

    chosen: dict[str, Method] = {"bicubic": bicubic}
    if config.static is not None:
        srresnet = load_srresnet(config.static).eval()
        chosen["SRResNet, same body"] = lambda lr, v: srresnet(lr)
    dasr = load_dasr(*(config.weights or (DEFAULT_WEIGHTS,))).eval()
    mean = mean_vector()[None]
    chosen["DASR"] = lambda lr, v: dasr(lr)
    chosen["DASR, true v"] = lambda lr, v: dasr(lr, degradation=v)
    chosen["DASR, mean v"] = lambda lr, v: dasr(lr, degradation=mean)
    return chosen


@torch.inference_mode()
def evaluate(config: Config) -> dict[str, dict[str, dict[str, float]]]:
    """Return method -> condition -> {"psnr", "ssim", "seconds"}, means over photographs and draws.

    Raises:
        ValueError: there is no photograph in the folder.
    """
    paths = sorted(path for path in config.photos.glob("*") if path.is_file())
    if not paths:
        raise ValueError(f"photos: expected a folder of photographs, got {config.photos}")
    compared = methods(config)
    totals = {name: {c: torch.zeros(4).double() for c in CONDITIONS} for name in compared}
    for index, path in enumerate(tqdm(paths, unit="photo")):
        picture = torch.from_numpy(read_rgb(path).copy()).permute(2, 0, 1)[None].float() / 255
        height, width = (side // SCALE * SCALE for side in picture.shape[2:])
        gt = picture[:, :, :height, :width]
        for number, condition in enumerate(CONDITIONS):
            draws = 1 if condition == "clean" else config.draws
            seed = (config.seed * len(paths) + index) * len(CONDITIONS) + number
            params = sample(torch.Generator().manual_seed(seed), draws, LEVELS[condition])
            for draw in range(draws):
                one = params[draw : draw + 1]
                lr, v = apply(one, gt, SCALE), labels(one)
                for name, method in compared.items():
                    start = time.perf_counter()
                    sr = method(lr, v).clamp(0, 1)
                    seconds = time.perf_counter() - start
                    scores = [psnr_y(sr, gt).item(), ssim_y(sr, gt).item(), seconds, 1.0]
                    totals[name][condition] += torch.tensor(scores).double()
    return {
        name: {
            condition: dict(zip(("psnr", "ssim", "seconds"), (t[:3] / t[3]).tolist(), strict=True))
            for condition, t in by_condition.items()
        }
        for name, by_condition in totals.items()
    }


def markdown(table: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the table as Markdown: PSNR-Y in dB / SSIM-Y."""
    lines = [
        "| | " + " | ".join(CONDITIONS) + " |",
        "| --- |" + " --- |" * len(CONDITIONS),
    ]
    for name, row in table.items():
        cells = [f"{row[c]['psnr']:.2f} / {row[c]['ssim']:.4f}" for c in CONDITIONS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Evaluate and print, and write where asked to."""
    config = tyro.cli(Config, description=__doc__)
    table = evaluate(config)
    text = markdown(table)
    print(text)
    if config.output is None:
        return
    for suffix, content in ((".md", text), (".json", json.dumps(table, indent=1) + "\n")):
        with atomic_path(config.output.with_suffix(suffix)) as temporary:
            temporary.write_text(content)


if __name__ == "__main__":
    main()
