"""Parameters of one sample in plain words and readable units, for JSON files."""

from __future__ import annotations

from typing import Any

from .levels import NO_JPEG
from .params import NOISE_KINDS, DegradationParams, StageParams, mode_name
from .resize import RESIZE_MODES


def describe(params: DegradationParams) -> dict[str, Any]:
    """Return what was drawn for a batch of one; steps that do not happen are None.

    Lengths are in pixels, angles in radians, omega in radians per pixel, sigma of noise in 8-bit
    steps. The scale of stage 1 is relative to the ground truth, that of stage 2 to the final size.

    Raises:
        ValueError: not exactly one sample.
    """
    if len(params) != 1:
        raise ValueError(f"params: expected one sample, got {len(params)}")
    two = bool(params.has_stage2)
    sinc = None
    if params.sinc_size.item():
        sinc = {"size": params.sinc_size.item(), "omega": params.sinc_omega.item()}
    order = "sinc_then_jpeg" if params.jpeg_last.item() else "jpeg_then_sinc"
    return {
        "stage1": _stage(params.stage1),
        "stage2": _stage(params.stage2) if two else None,
        "sinc": sinc,
        "order": order if two else None,
        "final_resize": {
            "mode": RESIZE_MODES[params.final_mode.item()],
            "antialias": params.final_antialias.item(),
        },
    }


def _stage(stage: StageParams) -> dict[str, Any]:
    blur = resize = noise = jpeg = None
    sigma_x, sigma_y = stage.blur_sigma[0].tolist()
    if sigma_x > 0:
        blur = {"size": stage.blur_size.item(), "sigma_x": sigma_x, "sigma_y": sigma_y}
        blur["rotation"] = stage.blur_rotation.item()
    mode = mode_name(stage.resize_mode.item())
    if mode is not None:
        resize = {"scale": stage.scale.item(), "mode": mode}
    kind = NOISE_KINDS[stage.noise_kind.item()]
    if kind != "none":
        name = "sigma" if kind == "gaussian" else "scale"
        noise = {"kind": kind, name: stage.noise_level.item(), "grey": stage.noise_grey.item()}
    if stage.jpeg_quality.item() < NO_JPEG:
        jpeg = {"quality": stage.jpeg_quality.item()}
    return {"blur": blur, "resize": resize, "noise": noise, "jpeg": jpeg}
