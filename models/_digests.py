"""Hashes that tell networks and tensors apart."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def network_digest(network: nn.Module) -> str:
    """Return a hash of the names, types, shapes and values of a network's state."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()


def tensor_bytes(value: Tensor) -> bytes:
    """Return the values of a tensor in row-major order."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
