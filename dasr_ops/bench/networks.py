"""Whole networks: ours, and the same weights run the official way."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasr_ops import DynamicConv2d, FusedConv2d
from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic

from . import accuracy
from .cases import DTYPES, INFERENCE, MEMORY_FORMATS, TRAINING, Case, Network
from .clock import Call
from .formulations import COMPILED, OFFICIAL, OURS, SLOPE, STATIC, compiled_once
from .subjects import Accuracy

_SEED = 0
_SETS = 2
_GRAPH = ", CUDA graph"

Run = Callable[[Tensor, Tensor], Tensor]


def peers(case: Case, device_type: str) -> tuple[str, ...]:
    """Return the names of the formulations of a network; on CUDA also replayed as CUDA graphs."""
    names = [OURS, OFFICIAL, COMPILED, STATIC, f"{STATIC}, compiled"]
    if device_type == "cuda" and case.mode == INFERENCE:
        names += [name + _GRAPH for name in (OURS, OFFICIAL, STATIC)]
    return tuple(names)


class OfficialGenerator(nn.Module):
    """The generator as the official code computes it, on the parameters of ours.

    Args:
        network: ours; its parameters are shared.
    """

    def __init__(self, network: MSRResNetDynamic) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor, weights: Tensor) -> Tensor:
        """Magnify ``input`` [B, 3, H, W] by the experts mixed with ``weights`` [B, K]."""
        g = self.network
        x = F.leaky_relu(_conv(g.conv_first, input, weights), SLOPE)
        for block in g.body:
            y = F.relu(_conv(block.conv1, x, weights))
            x = x + _conv(block.conv2, y, weights)
        for layer in (g.upconv1, g.upconv2):
            x = F.leaky_relu(F.pixel_shuffle(_conv(layer, x, weights), 2), SLOPE)
        x = F.leaky_relu(_conv(g.conv_hr, x, weights), SLOPE)
        enlarged = F.interpolate(
            input, scale_factor=g.upscale, mode="bilinear", align_corners=False
        )
        return _conv(g.conv_last, x, weights) + enlarged


def _conv(layer: DynamicConv2d, x: Tensor, weights: Tensor) -> Tensor:
    batch, experts = weights.shape
    weight = torch.mm(weights, layer.weight.view(experts, -1))
    weight = weight.view(batch * layer.out_channels, layer.in_channels, 3, 3)
    bias = torch.mm(weights, layer.bias).view(-1)
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, bias, padding=1, groups=batch)
    return y.view(batch, layer.out_channels, *x.shape[2:])


class OfficialDASR(nn.Module):
    """P and G as the official code computes them, on the parameters of ours.

    Args:
        network: ours; its parameters are shared.
    """

    def __init__(self, network: DASR) -> None:
        super().__init__()
        self.net_g = OfficialGenerator(network.net_g)
        self.features = plain(network.net_p.ConvNet)
        self.mapping = network.net_p.MappingNet

    def predict(self, lr: Tensor) -> Tensor:
        """Return the mixing weights [B, K] for images [B, 3, H, W]."""
        return self.mapping(self.features(lr).mean((2, 3)))

    def forward(self, lr: Tensor, weights: Tensor | None = None) -> Tensor:
        """Magnify ``lr`` [B, 3, H, W] by the experts mixed with ``weights`` [B, K], or P's."""
        return self.net_g(lr, self.predict(lr) if weights is None else weights)


def plain(network: nn.Module) -> nn.Module:
    """Return the layers in sequence, `FusedConv2d` as PyTorch's own with the same parameters."""
    layers: list[nn.Module] = []
    for layer in network.children():
        if not isinstance(layer, FusedConv2d):
            layers.append(layer)
            continue
        twin = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
        )
        twin.weight, twin.bias = layer.weight, layer.bias
        layers.append(twin)
        if layer.activation == "relu":
            layers.append(nn.ReLU())
        elif layer.activation == "leaky_relu":
            layers.append(nn.LeakyReLU(layer.negative_slope))
    return nn.Sequential(*layers)


class NetworkSubject:
    """A network on a batch of pictures.

    Args:
        case: of level ``"network"``.
        device: where.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        assert isinstance(case.subject, Network)
        self.case = case
        self.sets = _SETS
        self._network = network = case.subject
        self._train = case.mode == TRAINING
        dtype = DTYPES[case.dtype]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            g = MSRResNetDynamic(
                num_feat=network.features, num_block=network.blocks, num_models=network.experts
            )
            p = Degradation_Predictor(num_networks=network.experts)
            images = torch.rand(_SETS, network.batch, 3, network.height, network.width)
            self._weights = torch.softmax(torch.randn(network.batch, network.experts), 1)
            output = (network.batch, 3, 4 * network.height, 4 * network.width)
            self._grad = torch.randn(output) if self._train else None
        memory_format = {"memory_format": MEMORY_FORMATS[case.memory_format]}
        self._g = g.to(device, dtype)
        self._p = p.to(device, dtype).to(**memory_format)
        self._weights = self._weights.to(device, dtype)
        self._images = [x.to(device, dtype).contiguous(**memory_format) for x in images]
        if self._grad is not None:
            self._grad = self._grad.to(device, dtype).contiguous(**memory_format)
        self._memory_format = memory_format
        # A static network of its own, and what an allocator keeps of the activations.
        self.size = 2 * sum(p.nbytes for p in g.parameters()) + 20 * images[0].nbytes
        self._runs: dict[str, tuple[Run, list[nn.Parameter]]] = {}
        self._expected: dict[bool, tuple[Tensor, ...]] = {}
        self._graphs: dict[str, tuple[Call, Tensor]] = {}

    def call(self, peer: str) -> Call:
        """Return the call to time."""
        if peer.endswith(_GRAPH):
            return self._graph(peer)[0]
        run, parameters = self._run(peer)
        if not self._train:

            def forward(index: int, lap: Callable[[], None]) -> None:
                with torch.no_grad():
                    run(self._images[index], self._weights)
                lap()

            return forward

        def train(index: int, lap: Callable[[], None]) -> None:
            output = run(self._images[index], self._weights)
            lap()
            torch.autograd.grad(output, parameters, self._grad)
            del output
            lap()

        return train

    def check(self, peer: str) -> Accuracy:
        """Compare the result, or the gradients of all parameters together, with float64."""
        run, parameters = self._run(peer.removesuffix(_GRAPH))
        expected = self._reference(peer.startswith(STATIC))
        image = self._images[0]
        bound = accuracy.bound(self.case.dtype, 9 * self._network.features)
        depth = 2 * self._network.blocks + 5
        if not self._train:
            if peer.endswith(_GRAPH):
                replay, output = self._graph(peer)
                replay(0, lambda: None)
            else:
                with torch.no_grad():
                    output = run(image, self._weights)
            error = accuracy.max_error(output, expected[0])
            # The errors of the layers add up like a random walk.
            return Accuracy(error, depth**0.5 * bound)
        grads = torch.autograd.grad(run(image, self._weights), parameters, self._grad)
        flat, want = (torch.cat([g.double().flatten() for g in gs]) for gs in (grads, expected))
        # Rounding flips the sign of about that share of the arguments of each activation, and each
        # flip errs by a whole derivative.
        return Accuracy(accuracy.rms_error(flat, want), (depth * bound) ** 0.5)

    def forget_reference(self) -> None:
        """Free what only checks need."""
        self._expected.clear()

    def _run(self, peer: str) -> tuple[Run, list[nn.Parameter]]:
        if peer not in self._runs:
            self._runs[peer] = self._build(peer)
        return self._runs[peer]

    def _build(self, peer: str) -> tuple[Run, list[nn.Parameter]]:
        kind, _, how = peer.partition(", ")
        if kind == STATIC:
            static = self._g.to_static(self._weights[0]).to(**self._memory_format)
            parameters = list(static.parameters())

            def run(image: Tensor, weights: Tensor) -> Tensor:
                return static(image)

        else:
            g = self._g if kind == OURS else OfficialGenerator(self._g)
            parameters = list(g.parameters())
            run = _with_predictor(self._p, g) if self._network.name == "dasr" else g
        if how:
            run = compiled_once(run)
        return run, parameters

    def _reference(self, fixed: bool) -> tuple[Tensor, ...]:
        if fixed not in self._expected:
            g, p = (copy.deepcopy(net).double() for net in (self._g, self._p))
            weights = self._weights.double()
            image = self._images[0].double()
            with torch.set_grad_enabled(self._train):
                if fixed:
                    static = g.to_static(weights[0])
                    output, parameters = static(image), list(static.parameters())
                else:
                    run = OfficialGenerator(g)
                    run = _with_predictor(p, run) if self._network.name == "dasr" else run
                    output, parameters = run(image, weights), list(g.parameters())
            if self._train:
                self._expected[fixed] = torch.autograd.grad(output, parameters, self._grad.double())
            else:
                self._expected[fixed] = (output.detach(),)
        return self._expected[fixed]

    def _graph(self, peer: str) -> tuple[Call, Tensor]:
        """Return the replay of a captured call, and the tensor that it writes to."""
        if peer in self._graphs:
            return self._graphs[peer]
        run, _ = self._run(peer.removesuffix(_GRAPH))
        image = self._images[0].clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad():
            with torch.cuda.stream(stream):
                run(image, self._weights)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = run(image, self._weights)

        def replay(index: int, lap: Callable[[], None]) -> None:
            image.copy_(self._images[index])
            graph.replay()
            lap()

        self._graphs[peer] = replay, output
        return self._graphs[peer]


def _with_predictor(p: Degradation_Predictor, g: nn.Module) -> Run:
    def run(image: Tensor, weights: Tensor) -> Tensor:
        return g(image, p(image)[1])

    return run
