"""Convolutions as modules: `DynamicConv2d` and, for the static layers beside it, `FusedConv2d`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import Size2, activation_slope, check_shape, normalize_padding, pair
from .functional import (
    aggregate_experts_stack,
    convolution_dtype,
    dynamic_conv2d,
    mixes_inside,
    per_sample_conv2d,
    uses_cpu_kernels,
)

Mixed = tuple[Tensor, Tensor | None]
"""One kernel and one bias for each image."""

# Where the kernels of this package were measured to be faster than PyTorch's for a static layer.
_MANY_PIXELS = 32 * 32  # of each of several images
_FARTHEST = 32
_FEW_CHANNELS = 4
_FEW_PIXELS = 64
_FEW_PRODUCTS = 200_000
_POINTWISE_PIXELS = 64 * 64

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class ExpertModule(nn.Module):
    """A module with kernels of experts, [K, O, I/groups, kh, kw], among its parameters.

    ``module.to(memory_format=torch.channels_last)`` leaves them as they are: PyTorch has no such
    format of five dimensions and would raise an error. Features are what the format matters for.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def apply(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor)
            except RuntimeError as error:
                if tensor.dim() != 5 or "channels_last" not in str(error):
                    raise
            flat = fn(tensor.flatten(0, 1)).contiguous()  # for the rest of what is asked
            return flat.unflatten(0, tensor.shape[:2])

        return super()._apply(apply, recurse)


class DynamicConv2d(ExpertModule):
    """A convolution whose kernel is, for each image, a weighted sum of K expert kernels.

    Arguments and defaults are those of `torch.nn.Conv2d`; ``num_experts`` is K, and the keyword
    arguments behind it are fused into the operator, see `dasr_ops.dynamic_conv2d`. The module is
    called with an input [B, I, H, W] and routing weights [B, K], which a router computes (see
    `dasr_ops.routing`) or a network predicts, and returns [B, O/r^2, H'*r, W'*r].

    Each expert is initialised like a `torch.nn.Conv2d` of its own.

    Args:
        in_channels: I, channels of the input.
        out_channels: O, channels of the convolution.
        kernel_size: an int or a pair.
        stride: an int or a pair.
        padding: an int, a pair, ``'valid'`` or ``'same'``.
        dilation: an int or a pair.
        groups: must divide I and O.
        bias: whether each expert has a bias [O].
        num_experts: K.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        device: of the parameters.
        dtype: of the parameters.
        activation: None, ``'relu'`` or ``'leaky_relu'``.
        negative_slope: of ``'leaky_relu'``.
        residual_scale: factor of what a ``residual`` given to the call is added to.
        upscale_factor: r of a pixel shuffle of the result; r^2 must divide O.

    Attributes:
        weight: expert kernels, [K, O, I/groups, kh, kw].
        bias: expert biases, [K, O], or None.

    Raises:
        ValueError: an argument is out of range or does not fit another.
        TypeError: an argument is of the wrong type.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2,
        stride: Size2 = 1,
        padding: Size2 | str = 0,
        dilation: Size2 = 1,
        groups: int = 1,
        bias: bool = True,
        num_experts: int = 4,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        residual_scale: float = 1.0,
        upscale_factor: int = 1,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("groups", groups),
            ("num_experts", num_experts),
            ("upscale_factor", upscale_factor),
        ):
            if not isinstance(value, int):
                raise TypeError(f"{name}: {argument}: expected an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name}: {argument}: expected at least 1, got {value}")
        for argument, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups != 0:
                raise ValueError(
                    f"{name}: {argument}: expected a multiple of groups = {groups}, got {channels}"
                )
        if out_channels % (upscale_factor * upscale_factor) != 0:
            raise ValueError(
                f"{name}: upscale_factor: its square must divide out_channels = {out_channels}, "
                f"got {upscale_factor}"
            )
        if padding_mode not in _PADDING_MODES:
            raise ValueError(
                f"{name}: padding_mode: expected one of {_PADDING_MODES}, got {padding_mode!r}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair(name, "kernel_size", kernel_size, 1)
        self.stride = pair(name, "stride", stride, 1)
        self.dilation = pair(name, "dilation", dilation, 1)
        pads = normalize_padding(name, padding, self.kernel_size, self.stride, self.dilation)
        self.padding = padding if isinstance(padding, str) else (pads[0], pads[2])
        self.groups = groups
        self.num_experts = num_experts
        self.padding_mode = padding_mode
        self.activation = activation
        self.negative_slope = negative_slope
        self.residual_scale = residual_scale
        self.upscale_factor = upscale_factor
        activation_slope(name, activation, negative_slope)
        # F.pad takes left, right, top, bottom.
        self._pads = (pads[2], pads[3], pads[0], pads[1])
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(
            torch.empty(
                (num_experts, out_channels, in_channels // groups, *self.kernel_size), **factory
            )
        )
        if bias:
            self.bias = nn.Parameter(torch.empty((num_experts, out_channels), **factory))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every expert as `torch.nn.Conv2d` initialises its kernel and bias."""
        for expert in self.weight:
            nn.init.kaiming_uniform_(expert, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = self.weight[0, 0].numel()
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_conv2d(cls, conv: nn.Conv2d, num_experts: int = 4, **fused: Any) -> DynamicConv2d:
        """Start from a static layer: every expert is a copy of it.

        With routing weights that sum to 1 the result computes what ``conv`` does. Experts that are
        equal get different gradients, and part, only where routing weights differ between images.

        Args:
            conv: the layer to copy; its parameters are not shared.
            num_experts: K.
            **fused: ``activation``, ``negative_slope``, ``residual_scale``, ``upscale_factor``; the
                first two are those of a `FusedConv2d` by default.

        Returns:
            A module in the training mode of ``conv``, on its device, in its dtype.

        Raises:
            TypeError: ``conv`` is not a `torch.nn.Conv2d`, or is lazy and not yet initialised.
        """
        if not isinstance(conv, nn.Conv2d) or isinstance(conv.weight, nn.UninitializedParameter):
            raise TypeError(
                f"from_conv2d: conv: expected an initialised torch.nn.Conv2d, got {conv!r}"
            )
        if isinstance(conv, FusedConv2d):
            own = {"activation": conv.activation, "negative_slope": conv.negative_slope}
            fused = own | fused
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            num_experts,
            conv.padding_mode,
            conv.weight.device,
            conv.weight.dtype,
            **fused,
        )
        with torch.no_grad():
            layer.weight.copy_(conv.weight.unsqueeze(0).expand_as(layer.weight))
            if layer.bias is not None:
                layer.bias.copy_(conv.bias.unsqueeze(0).expand_as(layer.bias))
        return layer.train(conv.training)

    def forward(
        self,
        input: Tensor,
        routing_weights: Tensor,
        residual: Tensor | None = None,
        mixed: Mixed | None = None,
    ) -> Tensor:
        """Convolve ``input`` [B, I, H, W] with experts mixed by ``routing_weights`` [B, K].

        Args:
            input: images, [B, I, H, W].
            routing_weights: [B, K].
            residual: of the result's shape; ``residual + residual_scale * result`` is returned.
            mixed: what `mix_layers` has made of the experts and the routing weights.

        Returns:
            [B, O/r^2, H'*r, W'*r].
        """
        padding: Size2 | str = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._pads, mode=self.padding_mode)
            padding = 0
        geometry = (self.stride, padding, self.dilation, self.groups)
        fused = {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "residual": residual,
            "residual_scale": self.residual_scale,
            "upscale_factor": self.upscale_factor,
        }
        if mixed is not None:
            return per_sample_conv2d(input, *mixed, *geometry, **fused)
        return dynamic_conv2d(input, self.weight, routing_weights, self.bias, *geometry, **fused)

    def extra_repr(self) -> str:
        """Describe the layer in the manner of `torch.nn.Conv2d`."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
            f"num_experts={self.num_experts}",
        ]
        defaults = {
            "padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
            "padding_mode": "zeros",
            "activation": None,
            "residual_scale": 1.0,
            "upscale_factor": 1,
        }
        parts += [
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        if self.activation == "leaky_relu":
            parts.append(f"negative_slope={self.negative_slope}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class FusedConv2d(nn.Conv2d):
    """A `torch.nn.Conv2d` that computes its activation in the same pass.

    Arguments, parameters and state dict are those of `torch.nn.Conv2d`. Where they are faster, that
    is for CPU tensors, one group and strides up to 2, and for one image or large ones with enough
    to do, the kernels of this package do the work; elsewhere it is PyTorch's own convolution.

    Args:
        *args: as `torch.nn.Conv2d` takes them.
        activation: None, ``'relu'`` or ``'leaky_relu'``.
        negative_slope: of ``'leaky_relu'``.
        **kwargs: as `torch.nn.Conv2d` takes them.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *args: Any,
        activation: str | None = None,
        negative_slope: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        activation_slope(type(self).__name__, activation, negative_slope)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve ``input`` [B, I, H, W] to [B, O, H', W'].

        Args:
            input: images.
            residual: of the shape of the result, added to it behind the activation.
        """
        if not self._is_faster_fused(input):
            output = self._activate(self._conv_forward(input, self.weight, self.bias))
            if residual is None:
                return output
            shape = tuple(output.shape)
            check_shape(type(self).__name__, "residual", residual, "as output", shape)
            return output + residual.to(output.dtype)  # as the operators take it
        weight, bias = self.weight.unsqueeze(0), self.bias
        bias = None if bias is None else bias.unsqueeze(0)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        fused = {
            "activation": self.activation,
            "negative_slope": self.negative_slope,
            "residual": residual,
        }
        if input.shape[0] == 1:
            return per_sample_conv2d(input, weight, bias, *geometry, **fused)
        # One expert, and for every image all of it.
        all_of_it = weight.new_ones((input.shape[0], 1))
        return dynamic_conv2d(input, weight, all_of_it, bias, *geometry, **fused)

    def _activate(self, output: Tensor) -> Tensor:
        if self.activation is None:
            return output
        if self.activation == "relu":
            return F.relu(output)
        return F.leaky_relu(output, self.negative_slope)

    def _is_faster_fused(self, input: Tensor) -> bool:
        return (
            input.is_cpu
            and self.groups == 1
            and input.dim() == 4
            and self._has_work(input)
            and max(self.stride) <= 2
            and max(self.kernel_size) * max(self.dilation) <= _FARTHEST
            and self.padding_mode == "zeros"
            and convolution_dtype(input) == convolution_dtype(self.weight)
            and uses_cpu_kernels(input)
        )

    def _has_work(self, input: Tensor) -> bool:
        images, _, height, width = input.shape
        # Kernels are transformed for each image anew: that needs pixels to pay.
        if images != 1 and height * width < _MANY_PIXELS:
            return False
        if torch.compiler.is_compiling():
            return True  # rather than a graph for small images and another for large ones
        taps = self.kernel_size[0] * self.kernel_size[1]
        if taps >= 25:
            return True
        pixels = height * width // (self.stride[0] * self.stride[1])
        few_inputs = self.in_channels <= _FEW_CHANNELS
        if taps == 1:
            return pixels >= _POINTWISE_PIXELS and not few_inputs and input.stride(1) == 1
        products = pixels * taps * self.in_channels * self.out_channels
        enough = pixels >= _FEW_PIXELS and products >= _FEW_PRODUCTS
        return enough and (not few_inputs or input.stride(1) == 1)

    def extra_repr(self) -> str:
        """Describe the layer in the manner of `torch.nn.Conv2d`."""
        text = super().extra_repr()
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        return text


def mix_layers(
    layers: Sequence[DynamicConv2d], input: Tensor, routing_weights: Tensor
) -> list[Mixed | None]:
    """Mix the experts of layers that share their routing weights, all in one call.

    Args:
        layers: L layers of K experts each.
        input: images [B, ...]; what the layers will convolve has its type and device.
        routing_weights: [B, K].

    Returns:
        For each layer the argument ``mixed`` of its call: a kernel [O, I/groups, kh, kw] and a bias
        [O] or None for each image, in the type that ``input`` is convolved in. None for all layers
        where mixing costs less inside of the convolutions.
    """
    if mixes_inside(input):
        return [None] * len(layers)
    return list(mix_once(layers, routing_weights, convolution_dtype(input)))


def mix_once(
    layers: Sequence[DynamicConv2d], routing_weights: Tensor, dtype: torch.dtype
) -> list[Mixed]:
    """Mix the experts of layers for many calls with the same routing weights.

    Args:
        layers: L layers of K experts each.
        routing_weights: [B, K].
        dtype: of what the layers will convolve.

    Returns:
        For each layer the argument ``mixed`` of its calls, see `mix_layers`.
    """
    parameters = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    mixed = iter(aggregate_experts_stack(parameters, routing_weights, dtype=dtype))
    return [(next(mixed), None if layer.bias is None else next(mixed)) for layer in layers]
