"""What the network does, as one picture: rows of LR, SR and ground truth."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MOST_ROWS = 4
_GAP = 2  # white pixels between pictures


def grid(lr: Tensor, sr: Tensor, gt: Tensor) -> np.ndarray:
    """Put the first four samples below each other: LR enlarged without smoothing, SR, ground truth.

    Args:
        lr: [B, 3, h, w], uint8, or floating in 0..1; any device.
        sr: [B, 3, H, W]; what is not finite becomes black (nan, -inf) or white (inf).
        gt: [B, 3, H, W].

    Returns:
        uint8 [rows, columns, 3], white between the pictures.

    Raises:
        ValueError: shapes that do not fit, or no sample.
    """
    for name, value in (("lr", lr), ("sr", sr), ("gt", gt)):
        if value.dim() != 4 or value.shape[1] != 3 or 0 in value.shape:
            raise ValueError(f"{name}: expected [B, 3, H, W], none 0, got {list(value.shape)}")
    if sr.shape != gt.shape or len(lr) != len(gt):
        raise ValueError(
            f"sr: expected {list(gt.shape)} as gt, and as many as lr, "
            f"got {list(sr.shape)} and {len(lr)} of lr"
        )
    count, size = min(len(gt), MOST_ROWS), gt.shape[2:]
    large = F.interpolate(_bytes(lr[:count]).float(), size=tuple(size), mode="nearest-exact")
    columns = (large.byte(), _bytes(sr[:count]), _bytes(gt[:count]))
    height, width = size[0] + _GAP, size[1] + _GAP
    canvas = np.full((count * height - _GAP, len(columns) * width - _GAP, 3), 255, np.uint8)
    for x, column in enumerate(columns):
        for y, picture in enumerate(column):
            target = canvas[y * height : y * height + size[0], x * width : x * width + size[1]]
            target[:] = picture.permute(1, 2, 0).numpy()
    return canvas


def _bytes(pictures: Tensor) -> Tensor:
    pictures = pictures.detach().cpu()
    if pictures.dtype == torch.uint8:
        return pictures
    finite = pictures.float().nan_to_num(nan=0.0, posinf=1.0, neginf=0.0)
    return (finite.clamp(0, 1) * 255).round().byte()
