"""Argument checks, and ways to the device, shared by the degradation operators."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def check_images(images: torch.Tensor, name: str = "images") -> None:
    """Require a float [B, C, H, W] tensor with 1 or 3 channels.

    Raises:
        TypeError: not a tensor, or not float32 / float64.
        ValueError: wrong rank, channel count or empty picture.
    """
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(images).__name__}")
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64 in 0..1, got {images.dtype}")
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{name}: expected shape [B, 1 or 3, H, W], got {list(images.shape)}")
    if images.shape[2] == 0 or images.shape[3] == 0:
        raise ValueError(f"{name}: expected H and W above 0, got {list(images.shape)}")


def check_picture(image: torch.Tensor, name: str = "image") -> None:
    """Require one float [C, H, W] picture with 1 or 3 channels.

    Raises:
        TypeError: not a tensor, or not float32 / float64.
        ValueError: wrong rank, channel count or empty picture.
    """
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(image).__name__}")
    if image.dim() != 3:
        raise ValueError(f"{name}: expected shape [1 or 3, H, W], got {list(image.shape)}")
    check_images(image[None], name)


def check_generator(generator: torch.Generator, name: str = "generator") -> None:
    """Require a torch.Generator.

    Raises:
        TypeError: anything else.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"{name}: expected a torch.Generator, got {type(generator).__name__}")


def upload(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to a device; to a GPU from page-locked memory, without waiting."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep convolutions in their own precision, whatever the caller trains in."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
