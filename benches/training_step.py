"""``python benches/training_step.py``: a training step beside the same written the official way.

The paper's setting: batch 6, ground truth 256, K = 5, all losses. Each formulation does the same
work on the same batch: forward of G and P, pixel, vector, perceptual and adversarial loss,
backward, the discriminator's step, Adam and averages. "official" is written with `torch.mm` and
grouped convolutions for the experts, and PyTorch's own layers for all other networks, in NCHW;
"official, channels_last" keeps pictures and networks in that format. The rounds are interleaved.
VGG weights are random: they do not change what is computed.

Before the timing, losses and gradients of each formulation are compared on a smaller batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dasr_ops
from dasr_ops.bench.machine import describe
from dasr_ops.bench.networks import OfficialGenerator, plain
from dasr_ops.models import UNetDiscriminatorSN
from dasr_ops.models.files import atomic_path
from dasr_ops.train.batch import Batch
from dasr_ops.train.config import TrainConfig
from dasr_ops.train.config_losses import PerceptualLossConfig
from dasr_ops.train.engine.learner import Learner
from dasr_ops.train.engine.processes import Processes
from dasr_ops.train.synthesis import Synthesis

OURS, OFFICIAL = "dasr_ops", "official"
FORMULATIONS = (OURS, OFFICIAL, f"{OFFICIAL}, channels_last")
_VGG19 = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4)


class OfficialRestorer(nn.Module):
    """P and G the official way, on the parameters of ours."""

    def __init__(self, restorer: nn.Module) -> None:
        super().__init__()
        self.net_g = OfficialGenerator(restorer.network.net_g)
        self.net_p = restorer.network.net_p
        self.features = plain(self.net_p.ConvNet)

    def forward(self, lr: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
        vector = self.features(lr).mean((2, 3))
        return self.net_g(lr, self.net_p.MappingNet(vector)), vector


class OfficialDiscriminator(nn.Module):
    """D in PyTorch's own layers, on the parameters of ours."""

    def __init__(self, network: UNetDiscriminatorSN) -> None:
        super().__init__()
        self.network = network
        self.iterate_norms = network.iterate_norms

    def forward(self, input: Tensor) -> Tensor:
        def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
            for hook in layer._forward_pre_hooks.values():
                hook(layer, None)
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

        def leaky(layer: nn.Conv2d, x: Tensor) -> Tensor:
            return F.leaky_relu(conv(layer, x), 0.2)

        d = self.network
        downs = [leaky(d.conv0, input)]
        for layer in (d.conv1, d.conv2, d.conv3):
            downs.append(leaky(layer, downs[-1]))
        x = downs.pop()
        for layer in (d.conv4, d.conv5, d.conv6):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = leaky(layer, x) + downs.pop()
        return conv(d.conv9, leaky(d.conv8, leaky(d.conv7, x)))


class Step:
    """A training step in one formulation.

    Args:
        formulation: one of `FORMULATIONS`.
        config: the run.
        device: where.
    """

    def __init__(self, formulation: str, config: TrainConfig, device: torch.device) -> None:
        self.backend = None if formulation == OURS else "eager"
        config.engine.channels_last = formulation != OFFICIAL
        self.learner = learner = Learner(config, Processes(0, 1, device))
        if formulation == OURS:
            return
        learner._restorer = OfficialRestorer(learner.restorer)
        learner.discriminator = learner._judge = OfficialDiscriminator(learner.discriminator)

    def gradients(self, batch: Batch, number: int = 0) -> dict[str, Tensor]:
        """Compute losses and gradients; the parameters keep theirs."""
        with dasr_ops.use_backend(self.backend):
            return self.learner.gradients([batch], number)

    def __call__(self, batch: Batch, number: int) -> None:
        """Do a whole step, and wait for it."""
        values = self.gradients(batch, number)
        values["nonfinite"].item()
        self.learner.update(number)
        if batch.v.is_cuda:
            torch.cuda.synchronize()


def settings(weights: Path, batch_size: int, patch_size: int, precision: str) -> TrainConfig:
    """Return the paper's second stage."""
    config = TrainConfig()
    config.loss.perceptual = PerceptualLossConfig(weights=weights)
    config.data.batch_size, config.data.patch_size = batch_size, patch_size
    config.data.source_size = max(400, patch_size)
    config.engine.precision = precision
    return config


def random_vgg(path: Path) -> Path:
    """Write a file of torchvision's layout with random weights of a sensible size."""
    state, index, channels = {}, 0, 3
    generator = torch.Generator().manual_seed(0)
    for width in _VGG19:
        if width != "M":
            scale = (2 / (9 * channels)) ** 0.5
            weight = torch.randn(width, channels, 3, 3, generator=generator) * scale
            state[f"features.{index}.weight"] = weight
            state[f"features.{index}.bias"] = torch.zeros(width)
            channels = width
        index += 1 if width == "M" else 2
    torch.save(state, path)
    return path


def made_batch(config: TrainConfig, device: torch.device) -> tuple[Batch, Callable[[], Batch]]:
    """Return a batch of smooth random pictures, and the call that degrades it anew."""
    synthesis = Synthesis.from_config(config)
    size, count = config.data.source_size, config.data.batch_size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator)
    fine = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    sources = (fine * 255).to(torch.uint8).to(device)
    corners = torch.zeros(count, 2, dtype=torch.int64)
    seeds = iter(range(10**9))

    def make() -> Batch:
        params = synthesis.draw([next(seeds) for _ in range(count)])
        batch = synthesis(sources, corners, params)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return batch

    return make(), make


def check(steps: dict[str, Step], batch: Batch) -> dict[str, float]:
    """Return by formulation the distance of its gradients from the official ones, relative."""
    found = {}
    for name, step in steps.items():
        step.gradients(batch)
        parameters = [*step.learner.restorer.parameters()]
        judge = step.learner.discriminator
        parameters += list(getattr(judge, "network", judge).parameters())
        found[name] = torch.cat([p.grad.double().flatten() for p in parameters])
        for optimizer, _ in step.learner._optimizers():
            optimizer.zero_grad()
    want = found[OFFICIAL]
    return {name: ((grad - want).norm() / want.norm()).item() for name, grad in found.items()}


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument(
        "--output", type=Path, help="folder for training_step_PRECISION.json and .md"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        weights = random_vgg(Path(folder) / "vgg19.pth")
        sizes = options.batch, options.patch
        steps = {
            name: Step(name, settings(weights, *sizes, options.precision), device)
            for name in FORMULATIONS
        }
        small, _ = made_batch(settings(weights, 2, 64, options.precision), device)
        errors = check(steps, small)
    config = settings(weights, *sizes, options.precision)
    batch, make = made_batch(config, device)
    times: dict[str, list[float]] = {name: [] for name in (*FORMULATIONS, "synthesis")}
    for number in range(options.rounds + 1):
        for name in FORMULATIONS:
            times[name].append(_timed(partial(steps[name], batch, number)))
        times["synthesis"].append(_timed(make))
    report = {
        "machine": describe(device),
        "setting": {**vars(options), "output": None, "levels": config.degradation.levels.drawn()},
        "errors": errors,
        # The first round warms up.
        "seconds": {name: values[1:] for name, values in times.items()},
    }
    text = table(report)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".md", text), (".json", json.dumps(report, indent=1) + "\n")):
            path = options.output / f"training_step_{options.precision}{suffix}"
            with atomic_path(path) as temporary:
                temporary.write_text(content)


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def table(report: dict) -> str:
    """Return the report as Markdown."""
    seconds, machine, setting = report["seconds"], report["machine"], report["setting"]
    title = (
        f"{machine['name']}, {machine['threads']} threads, torch {machine['torch']}, dasr-ops "
        f"{machine['dasr_ops']}, commit {machine['commit']}, {setting['precision']}: a step with "
        f"batch {setting['batch']}, ground truth {setting['patch']}, K = 5, all losses; medians of "
        f"{setting['rounds']} interleaved rounds"
    )
    lines = [title, "", "| | seconds | times slower than dasr_ops | gradients differ by |"]
    lines.append("| --- | --- | --- | --- |")
    ours = statistics.median(seconds[OURS])
    for name in FORMULATIONS:
        ratios = [b / a for a, b in zip(seconds[OURS], seconds[name], strict=True)]
        middle = statistics.median(seconds[name])
        lines.append(
            f"| {name} | {middle:.3f} | {statistics.median(ratios):.2f} "
            f"| {report['errors'][name]:.1e} |"
        )
    share = statistics.median(seconds["synthesis"]) / ours
    middle = statistics.median(seconds["synthesis"])
    lines += ["", f"Degrading a batch takes {middle:.3f} s, {100 * share:.0f} % of our step."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
