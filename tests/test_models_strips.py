"""The tail of the generators in pieces: results, memory, and where it has to stay whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dasr_ops
from dasr_ops.models import MSRResNetDynamic, SRResNet, strips
from tests.reference import max_error

# Each of four layers errs by up to 3e-6 of its largest value (F(4x4,3x3), whose tiles lie
# elsewhere in pieces), in both of the results compared.
FORWARD_BAR = {torch.float32: 4 * 2 * 3e-6, torch.float64: 1e-14}

Net = Callable[[Tensor], Tensor]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def allow(map_bytes: int) -> None:
        monkeypatch.setattr(strips, "MAP_BYTES", {"cpu": map_bytes})
        monkeypatch.setattr(strips, "LEAST_SIDE", 8)

    return allow


def network(static: bool, scale: int, dtype: torch.dtype = torch.float32, feat: int = 6) -> Any:
    """A network whose layers neither amplify nor damp, and one that hides its mixing weights."""
    if static:
        net = SRResNet(num_feat=feat, num_block=1, upscale=scale)
    else:
        net = MSRResNetDynamic(num_feat=feat, num_block=1, num_models=3, upscale=scale)
    for parameter in net.parameters():
        fan_in = 9 * parameter.shape[-3] if parameter.dim() > 3 else 4
        nn.init.normal_(parameter, std=fan_in**-0.5)
    return net.to(dtype)


def arguments(
    net: nn.Module, batch: int, height: int, width: int, channels_last: bool = False
) -> tuple[Tensor, ...]:
    dtype = next(net.parameters()).dtype
    x = torch.rand(batch, 3, height, width, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weights = torch.softmax(torch.randn(batch, 3, dtype=dtype), 1)
    return (x,) if isinstance(net, SRResNet) else (x, weights)


@contextmanager
def counted(net: Any) -> Iterator[list[int]]:
    """Count the calls of a layer of the tail."""
    calls: list[int] = []
    hook = net.conv_hr.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pieces_make_the_whole(
    static: bool,
    scale: int,
    dtype: torch.dtype,
    channels_last: bool,
    small_pieces: Callable[[int], None],
) -> None:
    net = network(static, scale, dtype)
    for batch, height, width in ((1, 13, 11), (2, 37, 5), (3, 5, 31), (1, 1, 50), (1, 26, 27)):
        args = arguments(net, batch, height, width, channels_last)
        with torch.no_grad():
            small_pieces(1 << 40)
            with counted(net) as calls:
                expected = net(*args)
            assert len(calls) == 1
            for pixels in (40, 150):
                small_pieces(pixels * batch * 6 * dtype.itemsize * scale**2)
                with counted(net) as calls:
                    output = net(*args)
                if pixels == 40:
                    assert len(calls) > 1
                assert max_error(output, expected.double()) <= FORWARD_BAR[dtype]
                assert output.dtype == expected.dtype
                assert output.stride() == expected.stride()


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_one_piece_is_the_whole(static: bool, small_pieces: Callable[[int], None]) -> None:
    net = network(static, 4)
    args = arguments(net, 2, 9, 14)
    whole = net(*args)
    full_map = 2 * 6 * 4 * 16 * 9 * 14
    for map_bytes, one in ((full_map, True), (full_map - 1, False)):
        small_pieces(map_bytes)
        with torch.no_grad(), counted(net) as calls:
            output = net(*args)
        assert (len(calls) == 1) == one
        assert torch.equal(output, whole) or not one


def test_on_every_backend(backend: str, small_pieces: Callable[[int], None]) -> None:
    """Also on those for which all experts are mixed ahead."""
    net = network(False, 4)
    args = arguments(net, 2, 12, 9)
    small_pieces(50 * 2 * 6 * 4 * 16)
    with dasr_ops.use_backend(backend):
        whole = net(*args)
        with torch.no_grad(), counted(net) as calls:
            output = net(*args)
    assert len(calls) > 1
    assert max_error(output, whole.detach().double()) <= FORWARD_BAR[torch.float32]


def test_autocast(small_pieces: Callable[[int], None]) -> None:
    net = network(False, 2)
    args = arguments(net, 1, 20, 20)
    small_pieces(100 * 6 * 2 * 4)
    with torch.autocast("cpu", torch.bfloat16):
        whole = net(*args)
        with torch.no_grad():
            output = net(*args)
    assert output.dtype == whole.dtype
    # Both round five times to 8 bits.
    assert max_error(output, whole.detach().double()) <= 10 * 2.0**-8


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_gradients_need_the_whole(static: bool, small_pieces: Callable[[int], None]) -> None:
    small_pieces(1)
    net = network(static, 2)
    args = arguments(net, 1, 14, 15)
    with counted(net) as calls:
        net(*args).sum().backward()
        assert len(calls) == 1
        assert all(p.grad.any() for p in net.parameters())
        # Only a layer of the tail, or only the input, is trained.
        net.requires_grad_(False)
        net.conv_last.requires_grad_(True)
        net(*args).sum().backward()
        net.requires_grad_(False)
        net(args[0].requires_grad_(), *args[1:]).sum().backward()
        assert len(calls) == 3 and args[0].grad.any()
        # Nothing is.
        net(args[0].detach(), *args[1:])
        assert len(calls) > 4


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operator returns."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return result


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("size", [(40, 50), (150, 12), (9, 200)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_no_map_is_larger_than_allowed(
    static: bool, size: tuple[int, int], scale: int, small_pieces: Callable[[int], None]
) -> None:
    net = network(static, scale, feat=32)
    args = arguments(net, 2, *size, channels_last=True)
    pixels = 2 * 4 * math.prod(size)
    picture, full_map = 3 * scale**2 * pixels, 32 * scale**2 * pixels
    # More than the output and than the maps of the body, which exist in full.
    allowed = max(picture, 32 * pixels) + pixels
    small_pieces(allowed)
    with torch.no_grad(), Largest() as seen:
        net(*args)
    assert allowed / 3 < seen.bytes <= allowed
    with Largest() as seen:
        net(*args)
    assert seen.bytes >= full_map > 2 * allowed


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pieces_cover_the_output_once(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = {2: (2, 1), 3: (3, 1), 4: (2, 2, 1)}[scale]
    tail = strips.Tail([strips.Stage(lambda x: x, f) for f in factors], lambda x, y: x, [])
    context = strips.reach(tail.factors)
    for height, width in ((200, 150), (1000, 30), (30, 1000), (97, 1)):
        features = torch.empty(1, 64, height, width, device="meta")
        for map_bytes in (1 << 20, 8 << 20, 31 << 20):
            monkeypatch.setattr(strips, "MAP_BYTES", {"meta": map_bytes})
            pieces = strips._pieces(tail, features)
            covered = torch.zeros(height * scale, width * scale, dtype=torch.uint8)
            for rows, columns in pieces:
                covered[rows[-1], columns[-1]] += 1
                # LEAST_SIDE comes first, and is what 1 MiB does not suffice for.
                read = [s.stop - s.start for s in (rows[0], columns[0])]
                least = math.ceil(strips.LEAST_SIDE / scale) + 2 * context
                allowed = max(map_bytes // (64 * 4 * scale**2), least**2)
                assert math.prod(read) <= allowed
            assert (covered == 1).all() or not pieces
            if not pieces:
                assert height * width * 64 * 4 * scale**2 <= map_bytes


def test_compile_sees_the_whole(small_pieces: Callable[[int], None]) -> None:
    small_pieces(1)
    torch._dynamo.reset()
    for static in (False, True):
        net = network(static, 4).requires_grad_(False)
        compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
        for batch, height, width in ((1, 17, 16), (2, 9, 20)):
            args = arguments(net, batch, height, width)
            expected = net(*args)
            assert max_error(compiled(*args), expected.double()) <= FORWARD_BAR[torch.float32]


def test_export_sees_the_whole(small_pieces: Callable[[int], None]) -> None:
    small_pieces(1)
    net = network(False, 4).eval().requires_grad_(False)
    batch, height, width = (torch.export.Dim(name, min=2) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 2: height, 3: width}, {0: batch})
    program = torch.export.export(net, arguments(net, 2, 17, 16), dynamic_shapes=shapes)
    convolutions = [n for n in program.graph.nodes if "conv2d" in str(n.target)]
    assert len(convolutions) == len(net._layers())
    args = arguments(net, 3, 21, 9)
    expected = net(*args)
    assert max_error(program.module()(*args), expected.double()) <= FORWARD_BAR[torch.float32]
