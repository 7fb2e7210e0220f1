"""What the networks are trained for: the weighted losses of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..config_losses import LossConfig
from ..losses import GanLoss, PerceptualLoss, pixel_loss, regression_loss
from .errors import TrainingError


class Targets:
    """The pictures of a batch as floats in 0..1, converted when first asked for.

    Args:
        batch: on the device of the networks.
        memory_format: of the pictures.
    """

    def __init__(self, batch: Batch, memory_format: torch.memory_format) -> None:
        self.v = batch.v
        self.lr = _floats(batch.lr, memory_format)
        self._batch, self._format = batch, memory_format
        self._made: dict[bool, Tensor] = {}

    def truth(self, sharp: bool) -> Tensor:
        """Return the ground truth [B, 3, H, W], after unsharp masking or before."""
        if self._batch.sharp is self._batch.gt:
            sharp = False
        if sharp not in self._made:
            source = self._batch.sharp if sharp else self._batch.gt
            self._made[sharp] = _floats(source, self._format)
        return self._made[sharp]


def _floats(pictures: Tensor, memory_format: torch.memory_format) -> Tensor:
    return pictures.float().div_(255).contiguous(memory_format=memory_format)


class Objective:
    """The losses of the settings; each is returned times its weight.

    Args:
        config: losses and weights.
        device: of the networks.
        memory_format: of the pictures, and of the kernels of the perceptual network.

    Raises:
        TrainingError: the perceptual network or its weights cannot be had.
    """

    def __init__(
        self, config: LossConfig, device: torch.device, memory_format: torch.memory_format
    ) -> None:
        self.config = config
        self.pixel = pixel_loss(config.pixel.criterion)
        self.gan = GanLoss(config.gan.kind, config.gan.relativistic)
        self.perceptual: PerceptualLoss | None = None
        if config.perceptual.weight or config.perceptual.style_weight:
            try:
                perceptual = PerceptualLoss(config.perceptual)
            except (ValueError, RuntimeError, OSError) as error:  # CheckpointError is one of them
                raise TrainingError(f"loss.perceptual: {error}") from error
            self.perceptual = perceptual.to(device, memory_format=memory_format)

    def restorer(
        self,
        output: Tensor | None,
        vector: Tensor | None,
        targets: Targets,
        judge: nn.Module | None,
    ) -> dict[str, Tensor]:
        """Return the losses of the restored pictures.

        Args:
            output: [B, 3, H, W]; None where no weight is for pictures.
            vector: predicted degradation vectors [B, 33], None of a static network.
            targets: what the batch holds.
            judge: the discriminator, its parameters frozen; None for no adversarial loss.
        """
        config = self.config
        parts: dict[str, Tensor] = {}
        if config.regression.weight and vector is not None:
            regression = config.regression
            loss = regression_loss(vector, targets.v, regression.entries, regression.criterion)
            parts["vector"] = config.regression.weight * loss
        if output is None:
            return parts
        output = output.float()
        if config.pixel.weight:
            truth = targets.truth(config.pixel.usm)
            parts["pixel"] = config.pixel.weight * self.pixel(output, truth)
        if self.perceptual is not None:
            weights = {
                "perceptual": config.perceptual.weight,
                "style": config.perceptual.style_weight,
            }
            found = self.perceptual(output, targets.truth(config.perceptual.usm))
            parts.update({name: weights[name] * loss for name, loss in found.items()})
        if judge is not None:
            real = None
            if config.gan.relativistic:
                with torch.no_grad():
                    real = judge(targets.truth(config.gan.usm)).float()
            loss = self.gan.generator(judge(output).float(), real)
            parts["adversarial"] = config.gan.weight * loss
        return parts

    def discriminator(
        self, judge: nn.Module, output: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """Return the discriminator's loss and, detached, its mean logits of both kinds."""
        truth = targets.truth(self.config.gan.usm)
        # One call for both kinds: DistributedDataParallel wants one forward for each backward.
        logits = judge(torch.cat([truth, output.detach().to(truth.dtype)])).float()
        real, fake = logits.chunk(2)
        return {
            "discriminator": self.gan.discriminator(real, fake),
            "real": real.detach().mean(),
            "fake": fake.detach().mean(),
        }
