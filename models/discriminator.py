"""The discriminator D: a U-Net with spectral normalisation.

Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data",
ICCVW 2021; the U-Net follows Schönfeld et al., CVPR 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.spectral_norm import SpectralNorm

from dasr_ops import FusedConv2d

from ._checks import check_images, check_positive_int

_LEAKY = {"activation": "leaky_relu", "negative_slope": 0.2}


class UNetDiscriminatorSN(nn.Module):
    """D: judges every pixel of an image as real or made.

    The layers with spectral normalisation hold ``weight_orig``, ``weight_u`` and ``weight_v``, the
    keys of the official files.

    Args:
        num_in_ch: channels of the input.
        num_feat: channels of the finest features.
        skip_connection: whether features of the way down are added on the way up.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self, num_in_ch: int = 3, num_feat: int = 64, skip_connection: bool = True
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_positive_int(name, "num_in_ch", num_in_ch)
        check_positive_int(name, "num_feat", num_feat)
        if not isinstance(skip_connection, bool):
            raise TypeError(f"{name}: skip_connection: expected a bool, got {skip_connection!r}")
        self.config = {
            "num_in_ch": num_in_ch,
            "num_feat": num_feat,
            "skip_connection": skip_connection,
        }
        self.skip_connection = skip_connection

        def down(in_channels: int, out_channels: int) -> nn.Module:
            conv = FusedConv2d(
                in_channels, out_channels, 4, stride=2, padding=1, bias=False, **_LEAKY
            )
            return spectral_norm(conv)

        def same(in_channels: int, out_channels: int) -> nn.Module:
            conv = FusedConv2d(in_channels, out_channels, 3, padding=1, bias=False, **_LEAKY)
            return spectral_norm(conv)

        self.conv0 = FusedConv2d(num_in_ch, num_feat, 3, padding=1, **_LEAKY)
        self.conv1 = down(num_feat, num_feat * 2)
        self.conv2 = down(num_feat * 2, num_feat * 4)
        self.conv3 = down(num_feat * 4, num_feat * 8)
        self.conv4 = same(num_feat * 8, num_feat * 4)
        self.conv5 = same(num_feat * 4, num_feat * 2)
        self.conv6 = same(num_feat * 2, num_feat)
        self.conv7 = same(num_feat, num_feat)
        self.conv8 = same(num_feat, num_feat)
        self.conv9 = FusedConv2d(num_feat, 1, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Judge images.

        Args:
            input: [B, num_in_ch, H, W], 0..1; H and W multiples of 8.

        Returns:
            Logits, [B, 1, H, W]: positive where the image looks real.

        Raises:
            TypeError: ``input`` is not a floating-point tensor.
            ValueError: its shape does not fit.
        """
        check_images("UNetDiscriminatorSN", "input", input, self.config["num_in_ch"])
        if input.shape[2] % 8 or input.shape[3] % 8:
            raise ValueError(
                "UNetDiscriminatorSN: input: expected height and width in multiples of 8, "
                f"got {list(input.shape)}"
            )
        # Layers keep the format of their input, and all devices are fastest in this one.
        down0 = self.conv0(input.contiguous(memory_format=torch.channels_last))
        down1 = self.conv1(down0)
        down2 = self.conv2(down1)
        down3 = self.conv3(down2)
        output = self._up(self.conv4, down3, down2)
        output = self._up(self.conv5, output, down1)
        output = self._up(self.conv6, output, down0)
        return self.conv9(self.conv8(self.conv7(output)))

    @torch.no_grad()
    def iterate_norms(self, count: int = 1) -> None:
        """Bring the estimates of the spectral norms nearer by power iterations.

        In training mode each call of the network does one. A training step that calls it in eval
        mode, and this before, does as many whatever the number of its calls.

        Args:
            count: iterations.
        """
        for layer in self.children():
            for hook in layer._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):
                    for _ in range(count):
                        hook.compute_weight(layer, do_power_iteration=True)

    def _up(self, conv: nn.Module, input: Tensor, skip: Tensor) -> Tensor:
        enlarged = F.interpolate(input, scale_factor=2, mode="bilinear", align_corners=False)
        return conv(enlarged, skip if self.skip_connection else None)
