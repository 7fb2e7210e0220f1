"""What a case needs to be measured: argument sets, calls of each formulation, and its check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import accuracy
from .cases import DTYPES, MEMORY_FORMATS, TRAINING, Case, Layer
from .clock import Call
from .formulations import STATIC, Formulation, Tensors, formulation, reference

_MAX_SETS = 64
_SEED = 0


class Accuracy(NamedTuple):
    """Error of a formulation against float64, and the bound it must keep."""

    error: float
    bound: float


class Subject(Protocol):
    """A case with its tensors on a device."""

    case: Case
    sets: int
    size: int

    def call(self, peer: str) -> Call:
        """Return the call to time; `TRAINING` has two laps, forward and backward."""
        ...

    def check(self, peer: str) -> Accuracy:
        """Run ``peer`` once, for gradients too where they are timed, and compare with float64."""
        ...

    def forget_reference(self) -> None:
        """Free what only checks need."""
        ...


class LayerSubject:
    """One layer on rotating argument sets that are together larger than the last-level cache.

    Args:
        case: of level ``"op"``.
        device: where.
        cache: bytes of the last-level cache.
    """

    def __init__(self, case: Case, device: torch.device, cache: int) -> None:
        assert isinstance(case.subject, Layer)
        self.case = case
        self._layer = case.subject
        self._train = case.mode == TRAINING
        generator = torch.Generator(device).manual_seed(_SEED)
        first = self._make(generator)
        size = sum(t.nbytes for t in first if t is not None)
        self.sets = min(_MAX_SETS, max(2, math.ceil(2 * cache / size)))
        self._arguments = [first]
        self._arguments += [self._make(generator) for _ in range(self.sets - 1)]
        self._static = [_first_expert(tensors) for tensors in self._arguments]
        self._grads = [self._gradient(generator) for _ in range(self.sets if self._train else 0)]
        self._made: dict[str, Formulation] = {}
        self._expected: dict[bool, tuple[Tensor | None, ...]] = {}
        self._safe: dict[bool, Tensor] = {}
        self.size = self.sets * (size + (self._grads[0].nbytes if self._grads else 0))

    def call(self, peer: str) -> Call:
        """Return the call to time."""
        run, layer, arguments = self._formulation(peer), self._layer, self._of(peer)
        if not self._train:

            def forward(index: int, lap: Callable[[], None]) -> None:
                with torch.no_grad():
                    run(layer, arguments[index])
                lap()

            return forward

        def train(index: int, lap: Callable[[], None]) -> None:
            tensors = arguments[index]
            output = run(layer, tensors)
            lap()
            torch.autograd.grad(output, _leaves(tensors), self._grads[index], allow_unused=True)
            del output
            lap()

        return train

    def check(self, peer: str) -> Accuracy:
        """Compare the result, or all gradients, with float64."""
        layer, tensors = self._layer, self._of(peer)[0]
        run = self._formulation(peer)
        expected = self._reference(peer)
        terms = math.prod(layer.kernel_shape[1:])
        if not self._train:
            with torch.no_grad():
                error = accuracy.max_error(run(layer, tensors), expected[0])
            return Accuracy(error, accuracy.bound(self.case.dtype, terms))
        grads = torch.autograd.grad(
            run(layer, tensors), _leaves(tensors), self._safe_gradient(peer), allow_unused=True
        )
        return max(self._gradients(grads, expected), key=lambda a: a.error / a.bound)

    def forget_reference(self) -> None:
        """Free what only checks need."""
        self._expected.clear()
        self._safe.clear()

    def _gradients(
        self, grads: Sequence[Tensor | None], expected: Sequence[Tensor | None]
    ) -> Iterator[Accuracy]:
        """Compare each gradient by itself: a wrong one must not hide behind a large one."""
        layer = self._layer
        outs, _, *sides = layer.kernel_shape
        pixels = math.prod(layer.output_shape) // layer.out_channels
        terms = {
            "input": outs // layer.groups * math.prod(sides),
            "weight": pixels,
            "routing": math.prod(layer.kernel_shape),
            "bias": pixels,
            "residual": 1,
        }
        for n, grad, want in zip(terms.values(), grads, expected, strict=False):
            if want is not None:
                assert grad is not None, "a gradient is missing"
                bound = accuracy.bound(self.case.dtype, n)
                yield Accuracy(accuracy.rms_error(grad, want), bound)

    def _formulation(self, peer: str) -> Formulation:
        if peer not in self._made:
            self._made[peer] = formulation(peer, self._layer)
        return self._made[peer]

    def _of(self, peer: str) -> list[Tensors]:
        return self._static if peer == STATIC else self._arguments

    def _reference(self, peer: str) -> tuple[Tensor | None, ...]:
        fixed = peer == STATIC
        if fixed not in self._expected:
            tensors = self._of(peer)[0]
            if self._train:
                leaves = Tensors(*(_double(t) for t in tensors))
                output = reference(self._layer, leaves, peer)
                gradient = self._safe_gradient(peer).double()
                self._expected[fixed] = torch.autograd.grad(
                    output, _leaves(leaves), gradient, allow_unused=True
                )
            else:
                with torch.no_grad():
                    self._expected[fixed] = (reference(self._layer, tensors, peer),)
        return self._expected[fixed]

    def _safe_gradient(self, peer: str) -> Tensor:
        """Return a gradient of the output that is 0 where rounding may flip the activation."""
        if self._layer.activation is None:
            return self._grads[0]
        fixed = peer == STATIC
        if fixed not in self._safe:
            linear = replace(self._layer, activation=None, residual=False)
            tensors = self._of(peer)[0]._replace(residual=None)
            with torch.no_grad():
                before = reference(linear, tensors, peer).abs()
            margin = 4 * accuracy.bound(self.case.dtype, math.prod(self._layer.kernel_shape[1:]))
            self._safe[fixed] = self._grads[0] * (before > margin * before.max())
        return self._safe[fixed]

    def _make(self, generator: torch.Generator) -> Tensors:
        layer, dtype = self._layer, DTYPES[self.case.dtype]
        terms = math.prod(layer.kernel_shape[1:])

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            tensor = torch.randn(shape, generator=generator, device=generator.device) * scale
            return tensor.to(dtype).requires_grad_(self._train)

        return Tensors(
            self._image((layer.batch, layer.in_channels, layer.height, layer.width), random),
            random(layer.experts, *layer.kernel_shape, scale=terms**-0.5),
            random(layer.batch, layer.experts),
            random(layer.experts, layer.out_channels),
            self._image(layer.output_shape, random) if layer.residual else None,
        )

    def _image(self, shape: tuple[int, ...], random: Callable[..., Tensor]) -> Tensor:
        tensor = random(*shape).detach()
        tensor = tensor.contiguous(memory_format=MEMORY_FORMATS[self.case.memory_format])
        return tensor.requires_grad_(self._train)

    def _gradient(self, generator: torch.Generator) -> Tensor:
        shape = self._layer.output_shape
        gradient = torch.randn(shape, generator=generator, device=generator.device)
        gradient = gradient.to(DTYPES[self.case.dtype])
        return gradient.contiguous(memory_format=MEMORY_FORMATS[self.case.memory_format])


def _leaves(tensors: Tensors) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().double().requires_grad_()


def _first_expert(tensors: Tensors) -> Tensors:
    """Give a static layer a kernel of its own, so that its gradient has no zeros to fill."""
    weight, bias = (t[:1].detach().clone() for t in (tensors.weight, tensors.bias))
    train = tensors.weight.requires_grad
    return tensors._replace(weight=weight.requires_grad_(train), bias=bias.requires_grad_(train))
