"""DASR as an ONNX graph, written node by node.

Tracing gives the same arithmetic in many more nodes; here each layer is MatMul, Reshape and Conv,
and names are those of the state dict. Only operators of opset 13 (2020) are used: Conv, MatMul,
Gemm, Reshape, LeakyRelu, Relu, Add, DepthToSpace, Resize and ReduceMean, with Cast for float16,
Gather, Unsqueeze, Mul, Split and Sum for batches, and Clip if asked for. There is no control flow,
and no shape is computed, so height and width are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ..dasr import DASR
from ..generator import MSRResNetDynamic, SRResNet
from ..predictor import Degradation_Predictor
from ._common import Model
from ._interface import Interface

OPSET = 13
IR_VERSION = 7
"""What the first runtimes with this opset read."""

_SLOPE = 0.1
_P_SLOPE = 0.2


class Graph:
    """Nodes and constants in the order in which they are added.

    Args:
        half: features and kernels of G in float16.
    """

    def __init__(self, half: bool) -> None:
        self.half = half
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node and return the name of its only output, which is also its own."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def split(self, value: str, count: int) -> list[str]:
        """Cut channels into as many equal parts."""
        parts = [f"{value}.{index}" for index in range(count)]
        self.nodes.append(helper.make_node("Split", [value], parts, name=f"{value}.split", axis=1))
        return parts

    def constant(self, name: str, value: Any) -> str:
        """Add a constant, once, and return its name."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def cast(self, value: str, output: str, half: bool) -> str:
        """Convert to float16 or float32."""
        to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        return self.add("Cast", [value], output, to=to)

    def array(self, parameter: Any) -> np.ndarray:
        """Return a parameter of G in the type that it is stored in."""
        array = parameter.detach().cpu().float().numpy()
        return array.astype(np.float16) if self.half else array


class _StaticKernels:
    """Kernels without experts."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def conv(self, name: str, layer: nn.Module, features: str) -> str:
        graph = self.graph
        weight = graph.constant(f"{name}.weight", graph.array(layer.weight))
        bias = graph.constant(f"{name}.bias", graph.array(layer.bias))
        return _conv3x3(graph, name, features, weight, bias)


class _MixedKernels:
    """One kernel for the one picture: experts [K, O * I * 9] times mixing weights [1, K].

    They are mixed in float32 and rounded once, as `dasr_ops.dynamic_conv2d` does.
    """

    def __init__(self, graph: Graph, weights: str) -> None:
        self.graph = graph
        self.weights = weights

    def conv(self, name: str, layer: nn.Module, features: str) -> str:
        shape = layer.weight.shape[1:]
        weight = self._mix(f"{name}.weight", layer.weight, shape)
        bias = self._mix(f"{name}.bias", layer.bias, shape[:1])
        return _conv3x3(self.graph, name, features, weight, bias)

    def _mix(self, name: str, parameter: Any, shape: Sequence[int]) -> str:
        graph = self.graph
        experts = graph.constant(f"net_g.{name}", graph.array(parameter.flatten(1)))
        if graph.half:
            experts = graph.cast(experts, f"{name}.float", half=False)
        mixed = graph.add("MatMul", [self.weights, experts], f"{name}.mixed")
        if graph.half:
            mixed = graph.cast(mixed, f"{name}.half", half=True)
        text = "x".join(map(str, shape))
        size = graph.constant(f"shape_{text}", np.array(shape, np.int64))
        return graph.add("Reshape", [mixed, size], name)


class _MixedOutputs:
    """Any number of pictures: all experts run on each, and their outputs are mixed.

    K times the work and the features of one kernel, but kernels are constants, and pictures may
    have different mixing weights.
    """

    def __init__(self, graph: Graph, weights: str, experts: int) -> None:
        self.graph = graph
        self.experts = experts
        self.weights = graph.cast(weights, "weights.half", half=True) if graph.half else weights
        self.scales: dict[int, str] = {}

    def conv(self, name: str, layer: nn.Module, features: str) -> str:
        graph = self.graph
        kernels, biases = layer.weight.flatten(0, 1), layer.bias.flatten()  # [K * O, ...]
        weight = graph.constant(f"net_g.{name}.weight", graph.array(kernels))
        bias = graph.constant(f"net_g.{name}.bias", graph.array(biases))
        outputs = _conv3x3(graph, f"{name}.experts", features, weight, bias)
        scale = self._scale(layer.weight.shape[1])
        if self.experts == 1:
            return graph.add("Mul", [outputs, scale], name)
        scaled = graph.add("Mul", [outputs, scale], f"{name}.scaled")
        return graph.add("Sum", graph.split(scaled, self.experts), name)

    def _scale(self, channels: int) -> str:
        """Return mixing weights [B, K * channels, 1, 1], each for the outputs of its expert."""
        if channels not in self.scales:
            graph = self.graph
            order = np.repeat(np.arange(self.experts, dtype=np.int64), channels)
            index = graph.constant(f"experts_of_{channels}", order)
            name = f"weights.of_{channels}"
            each = graph.add("Gather", [self.weights, index], name, axis=1)
            axes = graph.constant("axes_2_3", np.array([2, 3], np.int64))
            self.scales[channels] = graph.add("Unsqueeze", [each, axes], f"{name}.map")
        return self.scales[channels]


_Kernels = _StaticKernels | _MixedKernels | _MixedOutputs


def _conv3x3(graph: Graph, name: str, features: str, weight: str, bias: str | None = None) -> str:
    inputs = [features, weight] if bias is None else [features, weight, bias]
    return graph.add("Conv", inputs, name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def add_predictor(graph: Graph, net_p: Degradation_Predictor, lr: str, output: str) -> str:
    """Add P up to v [B, num_params], in float32."""
    features = lr
    for index, layer in enumerate(net_p.ConvNet):
        name = f"net_p.ConvNet.{2 * index}"
        weight = graph.constant(f"{name}.weight", layer.weight.detach().cpu().float().numpy())
        bias = graph.constant(f"{name}.bias", layer.bias.detach().cpu().float().numpy())
        convolved = graph.add(
            "Conv",
            [features, weight, bias],
            name,
            kernel_shape=[5, 5],
            pads=[2, 2, 2, 2],
            strides=list(layer.stride),
        )
        features = graph.add("LeakyRelu", [convolved], f"{name}.activated", alpha=_P_SLOPE)
    # Rows first: sums of a few thousand numbers round less than sums of millions.
    rows = graph.add("ReduceMean", [features], "net_p.row_means", axes=[3], keepdims=0)
    return graph.add("ReduceMean", [rows], output, axes=[2], keepdims=0)


def add_mapping(graph: Graph, net_p: Degradation_Predictor, v: str) -> str:
    """Add the linear layers from v to mixing weights [B, K], in float32."""
    for index, layer in enumerate(net_p.MappingNet):
        name = f"net_p.MappingNet.{index}"
        weight = graph.constant(f"{name}.weight", layer.weight.detach().cpu().float().numpy())
        bias = graph.constant(f"{name}.bias", layer.bias.detach().cpu().float().numpy())
        output = "weights" if index == len(net_p.MappingNet) - 1 else name
        v = graph.add("Gemm", [v, weight, bias], output, transB=1)
    return v


def add_generator(
    graph: Graph,
    network: MSRResNetDynamic | SRResNet,
    kernels: _Kernels,
    lr: str,
    output: str,
    clip: bool,
) -> str:
    """Add G from ``lr`` to ``output``, both float32."""

    def leaky(features: str) -> str:
        return graph.add("LeakyRelu", [features], f"{features}.activated", alpha=_SLOPE)

    features = graph.cast(lr, "lr.half", half=True) if graph.half else lr
    features = leaky(kernels.conv("conv_first", network.conv_first, features))
    for index, block in enumerate(network.body):
        name = f"body.{index}"
        inner = kernels.conv(f"{name}.conv1", block.conv1, features)
        inner = graph.add("Relu", [inner], f"{inner}.activated")
        inner = kernels.conv(f"{name}.conv2", block.conv2, inner)
        features = graph.add("Add", [features, inner], name)
    factors = (2, 2) if network.upscale == 4 else (network.upscale,)
    for index, factor in enumerate(factors, 1):
        name = f"upconv{index}"
        features = leaky(kernels.conv(name, getattr(network, name), features))
        features = graph.add(
            "DepthToSpace", [features], f"{name}.shuffled", blocksize=factor, mode="CRD"
        )
    features = leaky(kernels.conv("conv_hr", network.conv_hr, features))
    features = kernels.conv("conv_last", network.conv_last, features)
    if graph.half:
        features = graph.cast(features, "conv_last.float", half=False)
    scales = graph.constant(
        "scales", np.array([1, 1, network.upscale, network.upscale], np.float32)
    )
    enlarged = graph.add(
        "Resize",
        [lr, "", scales],
        "enlarged",
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    if not clip:
        return graph.add("Add", [features, enlarged], output)
    total = graph.add("Add", [features, enlarged], "sum")
    ends = [graph.constant(name, np.float32(v)) for name, v in (("zero", 0), ("one", 1))]
    return graph.add("Clip", [total, *ends], output)


def build(model: Model, interface: Interface) -> onnx.ModelProto:
    """Return the model."""
    graph = Graph(interface.half)
    free = interface.free_batch(model)
    batch = "batch" if free else 1
    network = model.net_g if isinstance(model, DASR) else model
    channels, scale = network.config["num_in_ch"], model.upscale
    inputs = [_tensor("lr", batch, channels, "height", "width")]
    outputs = [_tensor("sr", batch, channels, f"{scale}*height", f"{scale}*width")]
    if isinstance(model, DASR):
        v = _tensor("degradation", batch, model.net_p.config["num_params"])
        if interface.degradation_input:
            inputs.append(v)
        else:
            add_predictor(graph, model.net_p, "lr", "degradation")
        if interface.predictor_only:
            outputs = [v]
        elif interface.degradation_output:
            outputs.append(v)
    if not interface.predictor_only:
        kernels: _Kernels = _StaticKernels(graph)
        if isinstance(model, DASR):
            weights = add_mapping(graph, model.net_p, "degradation")
            kernels = (
                _MixedOutputs(graph, weights, model.net_g.num_models)
                if free
                else _MixedKernels(graph, weights)
            )
        add_generator(graph, network, kernels, "lr", "sr", interface.clip)
    content = helper.make_graph(
        graph.nodes, type(model).__name__, inputs, outputs, list(graph.constants.values())
    )
    return helper.make_model(
        content, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _tensor(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
