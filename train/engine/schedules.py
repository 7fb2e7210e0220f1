"""Learning rates as functions of the step, so that there is no state to save."""

from __future__ import annotations

import math

from ..config import ScheduleConfig


def factor(config: ScheduleConfig, step: int) -> float:
    """Return the share of the highest learning rate that holds in a step.

    Args:
        config: course of the learning rate.
        step: number of the step, from 0.

    Returns:
        0..1, or above where `ScheduleConfig.gamma` is. The warm-up rises linearly to 1, reached in
        step `warmup`; a cosine begins there and ends behind the last step.
    """
    rise = min(1.0, (step + 1) / (config.warmup + 1))
    if config.kind == "multistep":
        return rise * config.gamma ** sum(step >= milestone for milestone in config.milestones)
    if config.kind == "cosine" and step >= config.warmup:
        progress = (step - config.warmup) / max(1, config.iterations - config.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return config.final + (1 - config.final) * cosine
    return rise
