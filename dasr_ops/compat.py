"""Drop-in replacements: the layer of the official DASR code, and timm's CondConv2d.

A DASR network changes one import line and keeps its checkpoints::

    from dasr_ops.compat import Dynamic_conv2d

A timm model, such as ``efficientnet_cc_b0_4e``, changes by one call and keeps its checkpoints and
its optimizer::

    from dasr_ops.compat import fuse_condconv
    fuse_condconv(model)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import Size2, normalize_padding, pair
from .conv import ExpertModule
from .functional import dynamic_conv2d

__all__ = ["Dynamic_conv2d", "FusedCondConv2d", "fuse_condconv"]


class Dynamic_conv2d(ExpertModule):
    """`dasr_ops.DynamicConv2d` in the form of the class of that name in the official DASR code.

    Constructor, attributes, parameters and call are those of the official class, so that its
    checkpoints load with ``strict=True`` and the results agree to rounding. It also does what the
    official class fails to do: ``groups`` > 1 and kernels that are not square work, and without
    ``init_weight`` each expert starts like a `torch.nn.Conv2d` of its own, where the official
    class leaves the bias uninitialised and draws the weight from N(0, 1).

    Args:
        in_planes: I, channels of the input.
        out_planes: O, channels of the output.
        kernel_size: an int or a pair.
        stride: an int or a pair.
        padding: an int, a pair, ``'valid'`` or ``'same'``; 1 by default, for a kernel of any size.
        dilation: an int or a pair.
        groups: must divide I and O.
        if_bias: whether each expert has a bias [O].
        K: number of experts.
        init_weight: initialise each expert by ``kaiming_uniform_`` with gain for ReLU, and its
            bias to 0, instead of like `torch.nn.Conv2d`.

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
        in_planes: int,
        out_planes: int,
        kernel_size: Size2,
        stride: Size2 = 1,
        padding: Size2 | str = 1,
        dilation: Size2 = 1,
        groups: int = 1,
        if_bias: bool = True,
        K: int = 5,
        init_weight: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        sizes = {"groups": groups, "in_planes": in_planes, "out_planes": out_planes, "K": K}
        for argument, value in sizes.items():
            if not isinstance(value, int):
                raise TypeError(f"{name}: {argument}: expected an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name}: {argument}: expected at least 1, got {value}")
            if argument.endswith("planes") and value % groups != 0:
                raise ValueError(
                    f"{name}: {argument}: expected a multiple of groups = {groups}, got {value}"
                )
        kernel = pair(name, "kernel_size", kernel_size, 1)
        strides = pair(name, "stride", stride, 1)
        normalize_padding(name, padding, kernel, strides, pair(name, "dilation", dilation, 1))
        self.in_planes = in_planes
        self.out_planes = out_planes
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.if_bias = if_bias
        self.K = K
        self.weight = nn.Parameter(torch.empty(K, out_planes, in_planes // groups, *kernel))
        if if_bias:
            self.bias = nn.Parameter(torch.empty(K, out_planes))
        else:
            self.register_parameter("bias", None)
        self._reset_parameters(init_weight)

    def _reset_parameters(self, init_weight: bool) -> None:
        for expert in self.weight:
            nn.init.kaiming_uniform_(expert, a=0 if init_weight else math.sqrt(5))
        if self.bias is not None:
            bound = 0.0 if init_weight else 1 / math.sqrt(self.weight[0, 0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Convolve ``inputs['x']`` [B, I, H, W] with experts mixed by ``inputs['weights']`` [B, K].

        Args:
            inputs: a dict with the images ``x`` and the routing weights ``weights``.

        Returns:
            [B, O, H', W'].
        """
        if not isinstance(inputs, Mapping) or "x" not in inputs or "weights" not in inputs:
            came = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise TypeError(
                f"{type(self).__name__}: inputs: expected a dict with 'x' and 'weights', got {came}"
            )
        return dynamic_conv2d(
            inputs["x"],
            self.weight,
            inputs["weights"],
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def extra_repr(self) -> str:
        """Describe the layer by the arguments of its constructor."""
        return (
            f"{self.in_planes}, {self.out_planes}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, if_bias={self.if_bias}, K={self.K}"
        )


class FusedCondConv2d(nn.Module):
    """What `fuse_condconv` makes of timm's CondConv2d; not to be constructed directly.

    Attributes:
        weight: expert kernels as timm lays them out, [K, O * I/groups * kh * kw].
        bias: expert biases, [K, O], or None.
    """

    # Set by timm's constructor: this class is only ever assigned to layers that it made.
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    num_experts: int
    dynamic_padding: bool
    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, x: Tensor, routing_weights: Tensor) -> Tensor:
        """Convolve ``x`` [B, I, H, W] with experts mixed by ``routing_weights`` [B, K].

        Args:
            x: images, [B, I, H, W].
            routing_weights: [B, K].

        Returns:
            [B, O, H', W'].
        """
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        padding = self.padding
        if self.dynamic_padding:
            x, padding = self._pad_same(x), (0, 0)
        return dynamic_conv2d(
            x,
            self.weight.view(self.num_experts, *shape),
            routing_weights,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
        )

    def _pad_same(self, x: Tensor) -> Tensor:
        """Pad to ceil(size / stride) outputs as TensorFlow does: an odd rest goes to the end."""
        pads: list[int] = []
        for axis in (1, 0):  # F.pad takes left, right, top, bottom.
            size, stride = x.shape[2 + axis], self.stride[axis]
            extent = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            total = torch.sym_max((size - 1) // stride * stride + extent - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)

    def extra_repr(self) -> str:
        """Describe the layer in the manner of `dasr_ops.DynamicConv2d`."""
        padding = "'same'" if self.dynamic_padding else self.padding
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, num_experts={self.num_experts}, padding={padding}, "
            f"dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )


def fuse_condconv(model: nn.Module) -> int:
    """Let every CondConv2d layer of timm in a model run on the operator of this package.

    Layers are recognised by the name of their class, and need not come from timm itself. Each
    stays the same object with the same parameters, hooks and mode; only its class becomes
    `FusedCondConv2d`. So optimizers, state dicts, weight sharing and averaged copies go on
    unchanged, timm need not be importable, and ``model`` may itself be such a layer. The call stays
    ``(x, routing_weights)``. Results agree to rounding; TensorFlow's 'same' padding is kept.

    Args:
        model: changed in place, with all its submodules.

    Returns:
        How many layers were changed: 0 for a model that has none left.

    Raises:
        TypeError: a class of that name has another layout than timm's; nothing is changed then.
    """
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if type(module).__name__ == "CondConv2d"
    ]
    for name, layer in layers:
        problem = _layout_problem(layer)
        if problem is not None:
            raise TypeError(
                f"fuse_condconv: model: the CondConv2d {name!r} lacks timm's layout: {problem}"
            )
    for _, layer in layers:
        layer.__class__ = FusedCondConv2d
    return len(layers)


def _layout_problem(layer: Any) -> str | None:
    for attribute in FusedCondConv2d.__annotations__:
        if not hasattr(layer, attribute):
            return f"it has no attribute {attribute!r}"
    for attribute in ("kernel_size", "stride", "padding", "dilation"):
        value = getattr(layer, attribute)
        if not isinstance(value, tuple) or len(value) != 2:
            return f"{attribute}: expected a pair, got {value!r}"
    size = layer.out_channels * (layer.in_channels // layer.groups) * math.prod(layer.kernel_size)
    expected = {
        "weight": [layer.num_experts, size],
        "bias": [layer.num_experts, layer.out_channels],
    }
    for attribute, shape in expected.items():
        tensor = getattr(layer, attribute)
        if tensor is None and attribute == "bias":
            continue
        if not isinstance(tensor, Tensor) or list(tensor.shape) != shape:
            came = list(tensor.shape) if isinstance(tensor, Tensor) else tensor
            return f"{attribute}: expected shape {shape}, got {came}"
    return None
