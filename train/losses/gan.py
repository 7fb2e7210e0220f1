"""Adversarial losses of logits, in float32 whatever their type, under autocast too."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ._checks import one_of, wide

KINDS = ("vanilla", "lsgan", "hinge", "wgan_softplus")
"""Names of the forms of the loss."""


def _logistic(logits: Tensor, real: bool) -> Tensor:
    # -log sigmoid(x): the binary cross-entropy with a target of 1, finite for any finite logit.
    return -F.logsigmoid(logits if real else -logits).mean()


def _squares(target: float) -> Callable[[Tensor, bool], Tensor]:
    def term(logits: Tensor, real: bool) -> Tensor:
        return (logits - (1.0 if real else target)).square().mean()

    return term


def _hinge(logits: Tensor, real: bool) -> Tensor:
    return F.relu(1 - logits if real else 1 + logits).mean()


class GanLoss:
    r"""The loss of a discriminator D and of the generator that it judges.

    With r and f the logits of real and of generated pictures, E the mean over all logits of the
    batch, s(x) = log(1 + exp(x)):

    ================= ==================================== ============
    kind              discriminator                        generator
    ================= ==================================== ============
    ``vanilla``       E s(-r) + E s(f)                     E s(-f)
    ``lsgan``         E (r - 1)² + E f²                    E (f - 1)²
    ``hinge``         E max(0, 1 - r) + E max(0, 1 + f)    -E f
    ``wgan_softplus`` as vanilla                           as vanilla
    ================= ==================================== ============

    ``vanilla`` is the binary cross-entropy of logits with the non-saturating generator (Goodfellow
    et al. 2014); ``lsgan`` is of Mao et al. 2017, ``hinge`` of Lim and Ye 2017. ``wgan_softplus``,
    the name of BasicSR for the logistic loss of StyleGAN2, is the same function as ``vanilla``.

    Relativistic (average; Jolicoeur-Martineau 2019), r is replaced by r - E f and f by f - E r, and
    both networks see both kinds of pictures, the generator with the parts exchanged:
    ``vanilla``: (E s(-(r - E f)) + E s(f - E r)) / 2 for D, (E s(-(f - E r)) + E s(r - E f)) / 2
    for the generator. ``hinge`` likewise with its terms of D, ``lsgan`` with targets 1 and -1. The
    half is that of ESRGAN's code. The means are those of one process.

    What does not learn is the caller's business: for the discriminator, ``fake`` is judged after
    ``detach()``; for the generator, the parameters of D have ``requires_grad`` off (or their
    gradients are cleared before D learns), and ``real`` is judged without gradients.

    Args:
        kind: ``'vanilla'``, ``'lsgan'``, ``'hinge'`` or ``'wgan_softplus'``.
        relativistic: judge pictures relative to the mean of the other kind.

    Raises:
        ValueError: ``kind`` is unknown, or ``wgan_softplus`` is to be relativistic: that would be
            ``vanilla`` again.
    """

    def __init__(self, kind: str, relativistic: bool = False) -> None:
        one_of("GanLoss", "kind", kind, KINDS)
        if relativistic and kind == "wgan_softplus":
            raise ValueError(
                "GanLoss: relativistic: expected False for kind 'wgan_softplus'; "
                "its relativistic form is that of 'vanilla'"
            )
        self.kind = kind
        self.relativistic = bool(relativistic)
        terms = {"lsgan": _squares(-1.0 if relativistic else 0.0), "hinge": _hinge}
        self._term = terms.get(kind, _logistic)

    def generator(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the loss of the generator.

        Args:
            fake: logits of generated pictures, of any shape.
            real: logits of real pictures, of any shape; used, and needed, if relativistic.

        Returns:
            A float32 number (float64 for float64 logits).

        Raises:
            TypeError: logits are not a floating-point tensor.
            ValueError: logits are empty, or ``real`` is missing.
        """
        fake = wide("GanLoss.generator", "fake", fake)
        if self.relativistic:
            if real is None:
                raise ValueError("GanLoss.generator: real: expected logits, since relativistic")
            return self._relative(fake, wide("GanLoss.generator", "real", real))
        if self.kind == "hinge":
            return -fake.mean()
        return self._term(fake, True)

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the loss of the discriminator.

        Args:
            real: logits of real pictures, of any shape.
            fake: logits of generated pictures, of any shape.

        Returns:
            A float32 number (float64 for float64 logits).

        Raises:
            TypeError: logits are not a floating-point tensor.
            ValueError: logits are empty.
        """
        real = wide("GanLoss.discriminator", "real", real)
        fake = wide("GanLoss.discriminator", "fake", fake)
        if self.relativistic:
            return self._relative(real, fake)
        return self._term(real, True) + self._term(fake, False)

    def _relative(self, better: Tensor, worse: Tensor) -> Tensor:
        """Loss that falls where logits of ``better`` rise above those of ``worse``."""
        above = self._term(better - worse.mean(), True)
        below = self._term(worse - better.mean(), False)
        return (above + below) / 2

    def __repr__(self) -> str:
        return f"GanLoss({self.kind!r}, relativistic={self.relativistic})"
