"""Networks between two trained ones."""

from __future__ import annotations

import copy

import torch

from .dasr import DASR


@torch.no_grad()
def blend(model: DASR, other: DASR, share: float) -> DASR:
    """Return a network between two of one ancestry, such as one of fidelity and its GAN.

    Each parameter is the weighted mean of both (Wang, Yu, Dong, Tang, Loy, "Deep Network
    Interpolation for Continuous Imagery Effect Transition", CVPR 2019). Networks that were not
    trained from each other have nothing useful between them.

    Args:
        model: one network.
        other: the other one, of the same sizes and labels.
        share: of ``other``, from 0 (``model``) to 1 (``other``).

    Returns:
        A new network, with the placement and type of ``model``.

    Raises:
        ValueError: the networks differ in size or labels, or ``share`` is not in 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"blend: share: expected 0 to 1, got {share}")
    sizes, others = ({**part.config, "labels": part.label_scheme} for part in (model, other))
    if sizes != others:
        raise ValueError(f"blend: other: expected a network of {sizes}, got {others}")
    result = copy.deepcopy(model)
    state = other.state_dict()
    for name, tensor in result.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(state[name].to(tensor), share)
    return result
