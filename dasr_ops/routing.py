"""Routers: small modules that look at features and mix the experts of a `DynamicConv2d`.

All are called with vectors x [B, C] or with features [B, C, H, W], whose averages over the image
are then x, and return routing weights [B, K]. These are float32 (float64 if the features or the
parameters are), under autocast and in half-precision models too: `dasr_ops.DynamicConv2d` takes
mixed types, and a rounded weight is an error in every tap of the mixed kernel. Constructors and
calls raise a TypeError or a ValueError that names the argument that does not fit.

======================  ===============================  =======================================
router                  routing weights                  paper
======================  ===============================  =======================================
`LinearGate`            any real number, sum 1 at first  DASR, Liang et al. 2022
`AttentionRouter`       positive, sum 1                  Dynamic Convolution, Chen et al. 2020
`SigmoidGate`           each in (0, 1)                   CondConv, Yang et al. 2019
`SoftmaxGate`           positive, sum 1                  Mixtures of experts, Jacobs et al. 1991
`TopKGate`              k positive, sum 1, the others 0  Sparsely-gated MoE, Shazeer et al. 2017
======================  ===============================  =======================================
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._backends.eager import AUTOCAST_DEVICES, accumulate_dtype

__all__ = [
    "AttentionRouter",
    "LinearGate",
    "SigmoidGate",
    "SoftmaxGate",
    "TopKGate",
    "anneal_temperature",
    "load_balancing_loss",
    "set_temperature",
]


class LinearGate(nn.Sequential):
    r"""The gate of DASR: two linear layers with nothing between or behind them.

    .. math:: a = W_1 (W_0 v + b_0) + b_1

    Weights may be negative and need not sum to 1. They do so for every input at initialisation,
    when the rows of :math:`W_1` are random minus their mean over the experts and :math:`b_1 = 1/K`;
    a network whose experts start as copies of a static layer
    (`dasr_ops.DynamicConv2d.from_conv2d`) then starts as that static network. The mixtures still
    differ between inputs, so that equal experts get different gradients and part.

    The parameters are ``0.weight``, ``0.bias``, ``1.weight``, ``1.bias``, as in ``MappingNet`` of
    the official degradation predictor. ("Efficient and Degradation-Adaptive Network for Real-World
    Image Super-Resolution", Liang, Zeng, Zhang, ECCV 2022.)

    Args:
        in_features: C, length of the degradation vector.
        num_experts: K.
        hidden_features: width between the two layers.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int = 5,
        hidden_features: int = 15,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {"num_experts": num_experts, "hidden_features": hidden_features}
        _check_sizes(type(self).__name__, in_features=in_features, **sizes)
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            nn.Linear(in_features, hidden_features, **factory),
            nn.Linear(hidden_features, num_experts, **factory),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise such that every input gets routing weights that differ but sum to 1."""
        first, last = self
        first.reset_parameters()
        last.reset_parameters()
        with torch.no_grad():
            last.weight -= last.weight.mean(0)
            last.bias.fill_(1 / last.out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, C, H, W] or vectors [B, C] to any real weights [B, K]."""
        first, last = self
        features = _pool(self, features, first)
        with _full_precision(features):
            return _linear(last, _linear(first, features))


class AttentionRouter(nn.Module):
    r"""Attention over experts, with a temperature that is annealed in training.

    .. math:: a = \text{softmax}\big((W_1 \, \text{relu}(W_0 x + b_0) + b_1) / T\big)

    A high temperature keeps the attention near 1/K, so that all experts learn from the first step;
    the paper lowers it linearly from 30 to 1 over ten epochs: call ``anneal_temperature(model,
    epoch / 10)`` at the start of each. The value is the buffer ``temperature``, part of the state
    dict, so that a resumed or deployed model keeps it, and it is changed in place, which neither
    recompiles a model nor invalidates a CUDA graph.

    ("Dynamic Convolution: Attention over Convolution Kernels", Chen et al., CVPR 2020.)

    Args:
        in_features: C.
        num_experts: K.
        hidden_features: width between the layers; by default C/4 as in the paper, but at least K.
        temperature, final_temperature: where annealing starts and ends.
        device, dtype: of the parameters.
    """

    temperature: Tensor

    def __init__(
        self,
        in_features: int,
        num_experts: int = 4,
        hidden_features: int | None = None,
        temperature: float = 30.0,
        final_temperature: float = 1.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _check_sizes(name, in_features=in_features, num_experts=num_experts)
        if hidden_features is None:
            hidden_features = max(in_features // 4, num_experts)
        _check_sizes(name, hidden_features=hidden_features)
        self.initial_temperature = _check_temperature(name, "temperature", temperature)
        self.final_temperature = _check_temperature(name, "final_temperature", final_temperature)
        factory = {"device": device, "dtype": dtype}
        self.squeeze = nn.Linear(in_features, hidden_features, **factory)
        self.attend = nn.Linear(hidden_features, num_experts, **factory)
        self.register_buffer("temperature", torch.full((), float(temperature), device=device))

    def reset_parameters(self) -> None:
        """Initialise the layers like `nn.Linear`, and begin the annealing anew."""
        self.squeeze.reset_parameters()
        self.attend.reset_parameters()
        self.temperature.fill_(self.initial_temperature)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, C, H, W] or vectors [B, C] to weights [B, K] >= 0 that sum to 1."""
        features = _pool(self, features, self.squeeze)
        with _full_precision(features):
            logits = _linear(self.attend, F.relu(_linear(self.squeeze, features)))
            return F.softmax(logits / self.temperature.to(logits.dtype), dim=1)

    def anneal(self, progress: float) -> None:
        """Set the temperature to its value after a share of the annealing.

        ``progress`` is 0 at the start and 1 where the final temperature is reached; values outside
        are clamped, so that ``epoch / 10`` serves for any number of epochs.
        """
        progress = float(progress)
        if progress != progress:
            raise ValueError(f"{type(self).__name__}: progress: expected a number, got {progress}")
        progress = min(max(progress, 0.0), 1.0)
        value = (1 - progress) * self.initial_temperature + progress * self.final_temperature
        self.temperature.fill_(value)

    def extra_repr(self) -> str:
        """Describe the range of the annealing."""
        return f"temperature={self.initial_temperature}, final_temperature={self.final_temperature}"


class _OneLayerGate(nn.Module):
    def __init__(
        self,
        in_features: int,
        num_experts: int = 4,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(type(self).__name__, in_features=in_features, num_experts=num_experts)
        self.gate = nn.Linear(in_features, num_experts, device=device, dtype=dtype)

    def _logits(self, features: Tensor) -> Tensor:
        features = _pool(self, features, self.gate)
        with _full_precision(features):
            return _linear(self.gate, features)


class SigmoidGate(_OneLayerGate):
    r"""The routing function of CondConv: experts are switched on independently of each other.

    .. math:: a = \sigma(W x + b)

    ("CondConv: Conditionally Parameterized Convolutions for Efficient Inference", Yang et al.,
    NeurIPS 2019.)

    Args:
        in_features: C.
        num_experts: K.
        device, dtype: of the parameters.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, C, H, W] or vectors [B, C] to weights [B, K], each in (0, 1)."""
        return torch.sigmoid(self._logits(features))


class SoftmaxGate(_OneLayerGate):
    r"""The gating network of the mixture of experts.

    .. math:: a = \text{softmax}(W x + b)

    ("Adaptive Mixtures of Local Experts", Jacobs et al., Neural Computation 1991.)

    Args:
        in_features: C.
        num_experts: K.
        device, dtype: of the parameters.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, C, H, W] or vectors [B, C] to weights [B, K] >= 0 that sum to 1."""
        return F.softmax(self._logits(features), dim=1)


class TopKGate(nn.Module):
    r"""The noisy top-k gate: a softmax over the k largest logits, all other weights exactly 0.

    .. math::
        h &= W x + \epsilon \odot \text{softplus}(W_\text{noise} x), \quad \epsilon \sim N(0, 1) \\
        a &= \text{softmax}(\text{keep\_top\_k}(h, k))

    The noise is there in training mode only, and lets experts outside the top k be tried. The
    compiled kernels do not read an expert whose weight is exactly 0, so k experts cost k, not K.
    Left alone, such a gate keeps preferring the experts it preferred first: add
    `load_balancing_loss` of the routing weights to the loss.

    As in the paper there are no biases, and both matrices start at 0, so that at first the noise
    alone chooses. Without noise the gate starts like a `torch.nn.Linear`, or it would choose the
    same k experts for every input. ("Outrageously Large Neural Networks: The Sparsely-Gated
    Mixture-of-Experts Layer", Shazeer et al., ICLR 2017.)

    Args:
        in_features: C.
        num_experts: K.
        k: how many experts have a weight, 1 to K. With k = 1 that weight is the constant 1,
            through which the gate learns nothing: train with k >= 2.
        noise: whether to add trainable noise in training mode.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int = 4,
        k: int = 2,
        noise: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _check_sizes(name, in_features=in_features, num_experts=num_experts, k=k)
        if k > num_experts:
            raise ValueError(f"{name}: k: expected at most num_experts = {num_experts}, got {k}")
        self.k = k
        factory = {"bias": False, "device": device, "dtype": dtype}
        self.gate = nn.Linear(in_features, num_experts, **factory)
        self.noise = nn.Linear(in_features, num_experts, **factory) if noise else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise to zeros if there is noise to choose experts, else like `nn.Linear`."""
        if self.noise is None:
            self.gate.reset_parameters()
        else:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.noise.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, C, H, W] or vectors [B, C] to weights [B, K], at most k not 0."""
        features = _pool(self, features, self.gate)
        with _full_precision(features):
            logits = _linear(self.gate, features)
            if self.noise is not None and self.training:
                scale = F.softplus(_linear(self.noise, features))
                logits = logits + torch.randn_like(logits) * scale
            largest, experts = logits.topk(self.k, dim=1)
            return torch.zeros_like(logits).scatter(1, experts, F.softmax(largest, dim=1))

    def extra_repr(self) -> str:
        """Show k."""
        return f"k={self.k}"


def load_balancing_loss(routing_weights: Tensor) -> Tensor:
    r"""Measure how unevenly a batch uses its experts: the importance loss of Shazeer et al. 2017.

    .. math:: \text{CV}\Big(\sum_b a_b\Big)^2, \quad \text{CV} = \text{standard deviation over
        experts} / \text{mean over experts}

    Add it to the loss with a factor (0.1 in the paper). It is a function of what a gate returned
    and of nothing else: no state is kept in the gate.

    Args:
        routing_weights: [B, K], not negative.

    Returns:
        A scalar from 0 (all experts matter equally) to K - 1 (one does all); 0 for an empty batch.
    """
    _check_tensor("load_balancing_loss", "routing_weights", routing_weights)
    shape = list(routing_weights.shape)
    if len(shape) != 2 or shape[1] < 1:
        raise ValueError(f"load_balancing_loss: routing_weights: expected [B, K], got {shape}")
    importance = routing_weights.sum(0, dtype=accumulate_dtype(routing_weights))
    mean = importance.mean()
    variance = (importance - mean).square().mean()
    return variance / mean.square().clamp_min(torch.finfo(mean.dtype).tiny)


def set_temperature(model: nn.Module, temperature: float) -> int:
    """Set the temperature of every `AttentionRouter` in a model.

    Args:
        model: searched with all its submodules.
        temperature: a positive number.

    Returns:
        How many routers there are.
    """
    temperature = _check_temperature("set_temperature", "temperature", temperature)
    routers = [m for m in model.modules() if isinstance(m, AttentionRouter)]
    for router in routers:
        router.temperature.fill_(temperature)
    return len(routers)


def anneal_temperature(model: nn.Module, progress: float) -> int:
    """Call `AttentionRouter.anneal` for every such router in a model.

    Args:
        model: searched with all its submodules.
        progress: 0 for the initial temperature of each router, 1 for its final one.

    Returns:
        How many routers there are.
    """
    routers = [m for m in model.modules() if isinstance(m, AttentionRouter)]
    for router in routers:
        router.anneal(progress)
    return len(routers)


def _pool(router: nn.Module, features: Tensor, first: nn.Linear) -> Tensor:
    """Check ``features``, average over the image, and widen to the type the router computes in."""
    name = type(router).__name__
    _check_tensor(name, "features", features)
    shape = list(features.shape)
    if len(shape) not in (2, 4) or shape[1] != first.in_features:
        raise ValueError(
            f"{name}: features: expected [B, C, H, W] or [B, C] with C = {first.in_features}, "
            f"got {shape}"
        )
    dtype = accumulate_dtype(features, first.weight)
    if features.dim() == 2:
        return features.to(dtype)
    if shape[2] == 0 or shape[3] == 0:
        raise ValueError(f"{name}: features: expected at least one pixel, got {shape}")
    return features.mean((2, 3), dtype=dtype)


def _linear(layer: nn.Linear, input: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(input.dtype)
    return F.linear(input, layer.weight.to(input.dtype), bias)


def _full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    device = tensor.device.type
    if device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _check_tensor(op: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name}: expected a Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name}: expected a floating-point tensor, got {value.dtype}")


def _check_sizes(op: str, **sizes: Any) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{op}: {name}: expected an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{op}: {name}: expected at least 1, got {value}")


def _check_temperature(op: str, name: str, value: Any) -> float:
    value = float(value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{op}: {name}: expected a positive number, got {value}")
    return value
