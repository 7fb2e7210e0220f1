"""The section `train` of a BasicSR file: losses, optimisers, schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .basicsr_options import Options


def losses(o: Options, dasr: bool, adversarial: bool) -> dict[str, Any]:
    """Return the section `loss` of our settings."""
    pixel: dict[str, Any] = {"weight": 0.0, "usm": False}
    if o.section("train.pixel_opt"):
        at = "train.pixel_opt."
        kinds = {"L1Loss": "l1", "MSELoss": "l2", "CharbonnierLoss": "charbonnier"}
        pixel["criterion"] = o.choose(f"{at}type", kinds, "")
        pixel["weight"] = o.get(f"{at}loss_weight", float, 1.0)
        pixel["usm"] = dasr and o.get("l1_gt_usm", bool, True)
        o.expect(f"{at}reduction", "mean")
    regression: dict[str, Any] = {"weight": 0.0}
    if dasr and o.section("train.regress_opt"):
        kinds = {"L1Loss": "l1", "MSELoss": "l2"}
        regression["criterion"] = o.choose("train.regress_opt.type", kinds, "")
        o.expect("train.regress_opt.reduction", "mean")
        regression["weight"] = o.get("train.regress_opt.loss_weight", float, 1.0)
    return {
        "pixel": pixel,
        "regression": regression,
        "perceptual": _perceptual(o, dasr),
        "gan": _gan(o, dasr) if adversarial else {"weight": 0.0},
    }


def _perceptual(o: Options, dasr: bool) -> dict[str, Any]:
    at = "train.perceptual_opt."
    if not o.section("train.perceptual_opt"):
        return {"weight": 0.0, "usm": False}
    o.choose(f"{at}type", {"PerceptualLoss": None}, "PerceptualLoss")
    o.expect(f"{at}use_input_norm", True)
    o.expect(f"{at}range_norm", False)
    return {
        "weight": o.get(f"{at}perceptual_weight", float, 1.0),
        "style_weight": o.get(f"{at}style_weight", float, 0.0),
        "network": o.choose(f"{at}vgg_type", {"vgg19": "vgg19"}, "vgg19"),
        "layers": o.get(f"{at}layer_weights", dict[str, float], {}),
        "criterion": o.choose(f"{at}criterion", {"l1": "l1"}, "l1"),
        "usm": dasr and o.get("percep_gt_usm", bool, True),
    }


def _gan(o: Options, dasr: bool) -> dict[str, Any]:
    at = "train.gan_opt."
    if not o.section("train.gan_opt"):
        return {"weight": 0.0}
    o.choose(f"{at}type", {"GANLoss": None}, "GANLoss")
    kinds = {kind: kind for kind in ("vanilla", "lsgan", "hinge", "wgan_softplus")}
    kind = o.choose(f"{at}gan_type", kinds, "vanilla")
    o.expect(f"{at}real_label_val", 1.0)
    o.expect(f"{at}fake_label_val", 0.0)
    o.expect("train.net_d_iters", 1)
    start = o.get("train.net_d_init_iters", int, 0)
    if start > 0:
        o.notes.append(
            f"train.net_d_init_iters: for {start} steps G learns without the adversarial loss "
            "here, instead of not at all"
        )
    return {
        "weight": o.get(f"{at}loss_weight", float, 1.0),
        "kind": kind,
        "usm": dasr and o.get("gan_gt_usm", bool, False),
        "start": max(start, 0),
    }


def optimizer(o: Options) -> dict[str, Any]:
    """Return the section `optimizer` of our settings."""
    name = o.get("train.optim_g.type", str, "Adam")
    lr = o.get("train.optim_g.lr", float)
    if lr is None:
        o.fail("train.optim_g.lr", "expected a learning rate, got nothing")
    decay = o.get("train.optim_g.weight_decay", float, 0.0)
    betas = o.get("train.optim_g.betas", tuple[float, float], (0.9, 0.999))
    fields = ("type", "lr", "weight_decay", "betas")
    options = {
        key: _number(o, f"train.optim_g.{key}")
        for key, value in o.section("train.optim_g").items()
        if key not in fields and value is not None
    }
    others = o.section("train.optim_d")
    if others:
        same = "the same as in train.optim_g,"  # one optimiser for both here
        o.expect("train.optim_d.type", name, what=same)
        o.expect("train.optim_d.weight_decay", decay, 0.0, same)
        o.expect("train.optim_d.betas", betas, (0.9, 0.999), same)
        for key in {**options, **others}:
            if key not in fields and _number(o, f"train.optim_d.{key}") != options.get(key):
                o.fail(f"train.optim_d.{key}", f"expected {same} {options.get(key)}")
    found = {
        "name": name,
        "lr": lr,
        "betas": betas,
        "weight_decay": decay,
        "options": options,
    }
    if others:
        found["discriminator_lr"] = o.get("train.optim_d.lr", float, lr)
    return found


def _number(o: Options, name: str) -> float | None:
    value = o.get(name, bool if isinstance(o.look(name), bool) else float)
    return None if value is None else float(value)


def schedule(o: Options, lr: float) -> dict[str, Any]:
    """Return the section `schedule` of our settings, for a learning rate `lr` of G."""
    at = "train.scheduler."
    total = o.get("train.total_iter", int)
    if total is None:
        o.fail("train.total_iter", "expected the number of steps, got nothing")
    found: dict[str, Any] = {
        "iterations": total,
        "warmup": max(0, o.get("train.warmup_iter", int, -1)),
        "kind": "constant",
    }
    if not o.section("train.scheduler"):
        return found
    steps, cosine = "multistep", "cosine"
    kinds = {"MultiStepLR": steps, "MultiStepRestartLR": steps}
    kinds |= {"CosineAnnealingRestartLR": cosine, "CosineAnnealingLR": cosine}
    found["kind"] = o.choose(f"{at}type", kinds, "")
    if found["kind"] == steps:
        found["milestones"] = _whole_numbers(o, f"{at}milestones", ())
        found["gamma"] = o.get(f"{at}gamma", float, 0.1)
        o.expect(f"{at}restarts", (0.0,))
        o.expect(f"{at}restart_weights", (1.0,))
        return found
    periods = _whole_numbers(o, f"{at}periods", (o.get(f"{at}T_max", int, total),))
    weights = o.get(f"{at}restart_weights", tuple[float, ...], (1.0,))
    if any(weight != 1 for weight in weights):
        o.fail(f"{at}restart_weights", f"expected only 1 here, got {list(weights)}")
    found["final"] = o.get(f"{at}eta_min", float, 0.0) / lr if lr else 0.0
    if periods != (total,):
        o.notes.append(
            f"{at}type: one cosine over all {total} steps here, without restarts, instead of "
            f"{len(periods)} over {', '.join(map(str, periods))}"
        )
    return found


def _whole_numbers(o: Options, name: str, default: Sequence[int]) -> tuple[int, ...]:
    numbers = o.get(name, tuple[float, ...], default)
    if not all(float(number).is_integer() for number in numbers):
        o.fail(name, f"expected whole numbers, got {list(numbers)}")
    return tuple(map(int, numbers))
