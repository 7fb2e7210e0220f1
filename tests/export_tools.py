"""Networks for the tests of exports: tiny, and with no layer that hardly matters."""

from __future__ import annotations

import torch

from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic


def tiny_model(
    scale: int = 2,
    experts: int = 3,
    channels: int = 3,
    num_params: int = 33,
    feat: int = 6,
    blocks: int = 2,
) -> DASR:
    """All layers count about equally, and mixing weights differ between pictures."""
    generator = torch.Generator().manual_seed(scale + 10 * experts + 100 * channels)
    model = DASR(
        MSRResNetDynamic(channels, channels, feat, blocks, experts, scale),
        Degradation_Predictor(channels, 4, num_params, experts),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "net_p.MappingNet.1.bias":
                parameter.copy_(1 / experts + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif name.startswith("net_p.MappingNet"):
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            else:
                fan_in = (
                    parameter[0].numel() if name.startswith("net_p") else parameter[0, 0].numel()
                )
                parameter.copy_(noise * (1.5 / fan_in) ** 0.5)
    return model


def pictures(model: DASR, batch: int, height: int, width: int) -> torch.Tensor:
    """Noise, brighter from picture to picture, so that each has a degradation of its own."""
    generator = torch.Generator().manual_seed(height + width)
    channels = model.net_g.config["num_in_ch"]
    noise = torch.rand(batch, channels, height, width, generator=generator)
    return noise * torch.linspace(0.3, 1, batch).view(-1, 1, 1, 1)
