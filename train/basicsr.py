"""Settings of BasicSR's layout: the official `train_DASR.yml`, and those of its MSRResNet.

Three things can happen to a key:

- It means the same here, and is taken over.
- What it asks for does not exist here and would make another training of it (other ranges of the
  degradations, another network, another kind of loss): an error that names it.
- It has no effect on the result here (names, caches, ports), or something close takes its place:
  it is listed as ignored, or a note says what happens instead.

Paths stay as they are: relative to the working directory, as there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from .basicsr_options import Options, same
from .basicsr_training import losses, optimizer, schedule
from .config import LevelWeights, TrainConfig
from .config_files import from_dict
from .config_rules import ConfigError
from .config_yaml import place_of, read_yaml
from .degradations import LEVELS, Stage


class BasicSRSettings(NamedTuple):
    """What was read.

    Attributes:
        config: the settings.
        ignored: dotted names of all keys without effect here, in the order of the file.
        notes: one line for each thing that is not done quite as the file says.
    """

    config: TrainConfig
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def load_basicsr(path: str | os.PathLike[str]) -> BasicSRSettings:
    """Read a training YAML of BasicSR's layout (`DASRModel`, `SRModel`, `SRGANModel`).

    Raises:
        ConfigError: not readable, or it asks for something that does not exist here; one line
            with file, line and key.
        ModuleNotFoundError: PyYAML is not installed.
    """
    return from_basicsr(read_yaml(path))


def from_basicsr(options: Mapping[str, Any]) -> BasicSRSettings:
    """Convert options that have been read already, see `load_basicsr`."""
    source = Options(options)
    settings = _settings(source)
    try:
        config = from_dict(settings)
    except ConfigError as error:
        raise ConfigError(f"{place_of(options, ())}as settings of ours: {error}") from None
    return BasicSRSettings(config, tuple(source.unread()), tuple(source.notes))


def _settings(o: Options) -> dict[str, Any]:
    models = {"DASRModel": "dasr", "SRModel": "srresnet", "SRGANModel": "srresnet"}
    dasr = o.choose("model_type", models, "DASRModel") == "dasr"
    adversarial = o.get("model_type", str) != "SRModel"
    network = _network(o, dasr)
    levels = _levels(o) if dasr else {"clean": 1.0}
    settings: dict[str, Any] = {
        "run": Path("runs", Path(o.get("name", str, "basicsr")).name),
        "seed": o.get("manual_seed", int, 0),
        "network": network,
        "start": _start(o, dasr),
        "data": _data(o, dasr, network["upscale"]),
        "degradation": {
            "levels": {part.name: levels.get(part.name, 0.0) for part in fields(LevelWeights)},
            "sharpen": dasr,
        },
        "loss": losses(o, dasr, adversarial),
        "optimizer": optimizer(o),
        "engine": {"ema": o.get("train.ema_decay", float, 0.0)},
        "validation": _validation(o, [name for name, weight in levels.items() if weight > 0]),
        "log": {
            "every": o.get("logger.print_freq", int, 100),
            "tensorboard": o.get("logger.use_tb_logger", bool, False),
        },
        "checkpoint": {"every": o.get("logger.save_checkpoint_freq", int, 5000)},
    }
    settings["schedule"] = schedule(o, settings["optimizer"]["lr"])
    if settings["loss"]["gan"]["weight"] > 0:
        network["discriminator_feat"] = _discriminator(o)
    if dasr and o.get("path.pretrain_network_p", str):
        settings["degradation"]["labels"] = "official"
        o.notes.append(
            "path.pretrain_network_p: a predictor of the official code speaks its scheme of "
            "labels: degradation.labels is official"
        )
    gpus = o.get("num_gpu", str if o.root.get("num_gpu") == "auto" else int, 1)
    if gpus == 0:
        settings["engine"]["device"] = "cpu"
    elif gpus != 1:
        o.notes.append(
            f"num_gpu: {gpus}: one process for each GPU, started by torchrun --nproc_per_node"
        )
    return settings


def _network(o: Options, dasr: bool) -> dict[str, Any]:
    scale = o.get("scale", int, 4)
    o.choose("network_g.type", {"MSRResNetDynamic" if dasr else "MSRResNet": None}, "")
    o.expect("network_g.num_in_ch", 3)
    o.expect("network_g.num_out_ch", 3)
    o.expect("network_g.upscale", scale, 4, "the same as scale,")
    network = {
        "kind": "dasr" if dasr else "srresnet",
        "upscale": scale,
        "num_feat": o.get("network_g.num_feat", int, 64),
        "num_block": o.get("network_g.num_block", int, 16),
    }
    if dasr:
        experts = o.get("network_g.num_models", int, 5)
        o.choose("network_p.type", {"Degradation_Predictor": None}, "")
        o.expect("network_p.in_nc", 3)
        o.expect("network_p.num_params", 33, default=100)
        o.expect("network_p.use_bias", True)
        for name in ("network_p.num_networks", "num_networks"):
            o.expect(name, experts, what="the same as network_g.num_models,")
        network["num_models"] = experts
        network["predictor_feat"] = o.get("network_p.nf", int, 64)
    return network


def _discriminator(o: Options) -> int:
    o.choose("network_d.type", {"UNetDiscriminatorSN": None}, "")
    o.expect("network_d.num_in_ch", 3)
    o.expect("network_d.skip_connection", True)
    return o.get("network_d.num_feat", int, 64)


def _start(o: Options, dasr: bool) -> dict[str, Any]:
    if o.get("path.resume_state", str):
        o.fail("path.resume_state", "training states of BasicSR cannot be resumed here")
    weights = [o.get("path.pretrain_network_g", Path)]
    if dasr:
        weights.append(o.get("path.pretrain_network_p", Path))
        if weights[1] and not weights[0]:
            o.fail("path.pretrain_network_p", "expected path.pretrain_network_g beside it")
    if weights[0] and not o.get("path.strict_load_g", bool, True):
        o.notes.append("path.strict_load_g: weights have to fit the networks here")
    return {
        "weights": [path for path in weights if path],
        "discriminator": o.get("path.pretrain_network_d", Path),
    }


def _data(o: Options, dasr: bool, scale: int) -> dict[str, Any]:
    at = "datasets.train."
    o.choose(f"{at}type", {"DASRDataset" if dasr else "PairedImageDataset": None}, "")
    backend = o.choose(f"{at}io_backend.type", {"disk": "disk", "lmdb": "lmdb"}, "disk")
    root = o.get(f"{at}dataroot_gt", Path)
    lists = [] if backend == "lmdb" else [f"{at}meta_info", f"{at}meta_info_file"]
    found = next((path for path in (o.get(name, Path) for name in lists) if path), None)
    if backend == "lmdb" and (root is None or root.suffix != ".lmdb"):
        o.fail(f"{at}dataroot_gt", f"expected a name that ends in .lmdb, got {root}")
    patch = o.get("gt_size", int) if dasr else None  # it comes first there
    if patch is None or o.look(f"{at}gt_size") == patch:
        patch = o.get(f"{at}gt_size", int)
    if patch is None:
        o.fail("gt_size", "expected the side of a patch, got nothing")
    if not dasr:
        o.notes.append(
            "datasets.train.dataroot_lq: low-resolution pictures are made here, by antialiased "
            "bicubic shrinking"
        )
    flip = "use_hflip" if o.look(f"{at}use_hflip") is not None else "use_flip"  # the older name
    # The official code degrades squares of 400 pixels.
    source = max(patch, 400 // scale * scale) if dasr else 2 * patch
    return {
        "train": [path for path in (found or root,) if path],
        "root": root if found else None,
        "patch_size": patch,
        "source_size": source,
        "batch_size": o.get(f"{at}batch_size_per_gpu", int, 6 if dasr else 16),
        "flip": o.get(f"{at}{flip}", bool, True),
        "rotate": o.get(f"{at}use_rot", bool, not dasr),
        "pool_size": o.get("queue_size", int, 192) if dasr else 0,
        "workers": o.get(f"{at}num_worker_per_gpu", int, 2),
    }


_DEGREES = {
    "weak_degrade_one_stage": "weak",
    "standard_degrade_one_stage": "standard",
    "severe_degrade_two_stage": "severe",
}


def _levels(o: Options) -> dict[str, float]:
    names = o.get("degree_list", tuple[str, ...], tuple(_DEGREES))
    weights = o.get("degree_prob", tuple[float, ...], (0.3, 0.3, 0.4))
    unknown = [name for name in names if name not in _DEGREES]
    if unknown or len(set(names)) < len(names):
        o.fail("degree_list", f"expected names among {', '.join(_DEGREES)}, got {list(names)}")
    if len(weights) != len(names):
        o.fail("degree_prob", f"expected {len(names)} numbers, got {len(weights)}")
    pairs = zip(names, weights, strict=True)
    levels = {_DEGREES[name]: weight for name, weight in pairs if weight}
    for name in levels:
        level, suffix = LEVELS[name], "" if name == "severe" else f"_{name}1"
        _expect_stage(o, level.stage1, suffix, f"blur_kernel_size_minimum{suffix}")
        if level.stage2 is not None:
            _expect_stage(o, level.stage2, "2", "blur_kernel_size2_minimum")
            o.expect("second_blur_prob", level.stage2.blur_prob)
        if level.sinc is not None:
            o.expect("datasets.train.final_sinc_prob", level.sinc.prob)
    return levels


def _expect_stage(o: Options, stage: Stage, suffix: str, minimum: str) -> None:
    """Check that one round of degradations is the paper's, which is all there is here."""
    at = "datasets.train."
    quality = tuple(map(float, stage.jpeg_quality))
    for name, wanted in (
        ("resize_prob", stage.resize_weights),
        ("resize_range", stage.scale),
        ("gaussian_noise_prob", stage.gaussian_prob),
        ("noise_range", stage.gaussian_sigma),
        ("poisson_scale_range", stage.poisson_scale),
        ("gray_noise_prob", stage.grey_prob),
        ("jpeg_range", quality),
        (f"{at}blur_sigma", stage.blur_sigma),
        (f"{at}sinc_prob", 0.0),
    ):
        o.expect(f"{name}{suffix}", wanted)
    o.expect(f"{at}blur_kernel_size{suffix}", stage.blur_size[1])
    o.expect(f"{at}{minimum}", stage.blur_size[0])
    wanted_kinds = {"iso": stage.isotropic_prob, "aniso": 1 - stage.isotropic_prob}
    kinds = o.get(f"{at}kernel_list{suffix}", tuple[str, ...], tuple(wanted_kinds))
    shares = o.get(f"{at}kernel_prob{suffix}", tuple[float, ...], tuple(wanted_kinds.values()))
    if sorted(kinds) != sorted(wanted_kinds):
        o.fail(f"{at}kernel_list{suffix}", f"expected iso and aniso, got {list(kinds)}")
    if not same(shares, tuple(wanted_kinds[kind] for kind in kinds)):
        text = ", ".join(f"{kind} {share:g}" for kind, share in wanted_kinds.items())
        o.fail(f"{at}kernel_prob{suffix}", f"expected {text}, got {list(shares)}")


_METRICS = ("calculate_psnr", "calculate_ssim")


def _validation(o: Options, levels: list[str]) -> dict[str, Any]:
    validation: dict[str, Any] = {"every": 0, "levels": levels}
    if o.section("val"):
        validation["every"] = o.get("val.val_freq", int, 5000)
    names = [
        f"val.metrics.{name}.crop_border"
        for name, metric in o.section("val.metrics").items()
        if isinstance(metric, Mapping) and metric.get("type") in _METRICS
    ]
    o.read |= {("val", "metrics", name.split(".")[2], "type") for name in names}
    borders = {o.get(name, int, 0) for name in names}
    if len(borders) == 1:
        validation["border"] = borders.pop()
    elif borders:
        o.fail(names[0], f"expected one border for PSNR and SSIM, got {sorted(borders)}")
    at = "datasets.val."
    backend = o.look(f"{at}io_backend.type") or "disk"
    if o.look(f"{at}type") == "PairedImageDataset" and backend == "disk":
        o.read |= {("datasets", "val", "type"), ("datasets", "val", "io_backend", "type")}
        validation["pictures"] = o.get(f"{at}dataroot_gt", Path)
        o.notes.append(
            f"{at}dataroot_lq: low-resolution pictures are made here of those of dataroot_gt, at "
            f"the levels {', '.join(levels)}"
        )
    return validation
