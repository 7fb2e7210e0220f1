"""The degradation that a network is specialised on: from a file, a picture, or a mean."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..dasr import DASR
from ._common import check_model

NAMED = ("clean", "mean")
"""Degradations that need no file."""

_MAX_PIXELS = 1 << 20


def choose_degradation(
    model: DASR, source: str | os.PathLike[str], scheme: str | None = None
) -> Tensor:
    """Return a degradation vector for `merge`.

    Args:
        model: the networks.
        source: "clean", what pictures have that were only shrunk; "mean", the mean of the
            degradations of training; a ``.json`` file, see `load_degradation`; or a picture, of
            which P predicts it.
        scheme: meaning of the entries of v, "unified" or "official"; a file that names another is
            refused. None: that of ``model``.

    Returns:
        v, float32 [1, 33].

    Raises:
        TypeError: ``model`` is not a DASR.
        ValueError: the network's v is not DASR's, the scheme is not known, or the file has none;
            the message is one line.
        PictureError: the picture cannot be read.
    """
    check_model("choose_degradation", model, DASR)
    scheme = scheme or model.label_scheme
    if str(source) in NAMED:
        return _named(model, str(source), scheme)
    if Path(source).suffix.lower() == ".json":
        from ..controls import load_degradation

        return load_degradation(source, scheme)
    return _predicted(model, source)


def _named(model: DASR, name: str, scheme: str) -> Tensor:
    from dasr_ops.train.degradations import NUM_LABELS, SCHEMES, TRAINING_MIX, labels, sample

    length = model.net_p.config["num_params"]
    if length != NUM_LABELS:
        raise ValueError(
            f"{name}: the network predicts {length} numbers instead of the {NUM_LABELS} of DASR: "
            "nobody knows what they mean"
        )
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {sorted(SCHEMES)}, got {scheme!r}")
    generator = torch.Generator().manual_seed(0)
    if name == "clean":
        return labels(sample(generator, 1, {"clean": 1.0}), scheme)
    # 4096 draws: the mean's standard error is below 0.01 of each entry's range.
    return labels(sample(generator, 4096, TRAINING_MIX), scheme).mean(0, keepdim=True)


def _predicted(model: DASR, path: str | os.PathLike[str]) -> Tensor:
    from ..pictures import fill_transparent, read_picture

    picture = read_picture(path)
    color = picture.color
    if picture.alpha is not None:
        color = fill_transparent(color, picture.alpha)
    peak = float(np.iinfo(color.dtype).max)
    lr = torch.from_numpy(color.astype(np.float32) / np.float32(peak))
    lr = lr.unsqueeze(0) if lr.dim() == 2 else lr.permute(2, 0, 1)
    channels = model.net_p.config["in_nc"]
    if channels == 1:
        lr = lr.mean(0, keepdim=True)
    parameter = next(model.net_p.parameters())
    lr = lr.expand(channels, -1, -1).unsqueeze(0).to(parameter.device, parameter.dtype)
    with torch.no_grad():
        return model.predict(lr, _MAX_PIXELS).v.float().cpu()
