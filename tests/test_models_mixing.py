"""Experts mixed once for many images of the same weights."""

from __future__ import annotations

import pytest
import torch

from dasr_ops import backends, use_backend
from dasr_ops.models import MSRResNetDynamic, strips

pytestmark = pytest.mark.usefixtures("one_thread")

# About ten float32 convolutions of up to 72 products, on values of order 1.
TOLERANCE = 1e-5
BACKENDS = [name for name in ("cpu", "eager") if backends()[name].startswith("available")]


@pytest.mark.parametrize("upscale", [2, 4])
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("name", BACKENDS)
def test_once_is_as_good_as_each_time(name, upscale, pieces, monkeypatch):
    if pieces:
        monkeypatch.setitem(strips.MAP_BYTES, "cpu", 1)
    network = MSRResNetDynamic(num_feat=8, num_block=2, num_models=3, upscale=upscale).eval()
    weights = torch.tensor([[0.7, -0.4, 0.6], [0.1, 1.2, 0.0]])
    statics = [network.to_static(row).double() for row in weights]
    with torch.no_grad(), use_backend(name):
        mixed = network.mix(weights)
        for size in ((40, 70), (1, 5)):
            x = torch.rand(2, 3, *size)
            found = network(x, weights, mixed)
            want = torch.cat([net(row[None].double()) for net, row in zip(statics, x, strict=True)])
            torch.testing.assert_close(found.double(), want, rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(found, network(x, weights), rtol=0, atol=TOLERANCE)


def test_kernels_are_those_given_and_not_mixed_again():
    network = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2).eval()
    x, weights = torch.rand(1, 3, 6, 6), torch.tensor([[0.3, 0.7]])
    with torch.no_grad():
        want = network(x, weights)
        mixed = network.mix(weights)
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
        torch.testing.assert_close(network(x, weights, mixed), want, rtol=0, atol=TOLERANCE)


def test_gradients_pass_through():
    network = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2)
    x, weights = torch.rand(1, 3, 6, 6), torch.tensor([[0.3, 0.7]])
    target = torch.rand(1, 3, 24, 24)
    gradients = []
    for once in (False, True):
        output = network(x, weights, network.mix(weights) if once else None)
        loss = (output - target).square().mean()
        gradients.append(torch.autograd.grad(loss, [*network.parameters()]))
    for found, want in zip(*gradients, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    network = MSRResNetDynamic(num_feat=8, num_block=1, num_models=2).eval()
    x, weights = torch.rand(1, 3, 9, 8), torch.tensor([[0.3, 0.7]])
    with torch.no_grad():
        mixed = network.mix(weights, dtype)
        assert all(kernel.dtype == bias.dtype == dtype for kernel, bias in mixed)
        found = network(x.to(dtype), weights, mixed)
        assert found.dtype == dtype
        want = network.to_static(weights)(x)
    # Eight roundings of features and kernels to so many bits, which add up like a random walk.
    bound = 8 * torch.finfo(dtype).eps * want.abs().max().item()
    assert (found.float() - want).abs().max() <= bound


def test_bad_arguments():
    network = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2)
    x, weights = torch.rand(1, 3, 6, 6), torch.tensor([[0.3, 0.7]])
    with pytest.raises(ValueError, match=r"mix: weights: expected \[1, 2\], got \[1, 3\]"):
        network.mix(torch.rand(1, 3))
    with pytest.raises(TypeError, match="mix: weights: expected a Tensor, got list"):
        network.mix([0.3, 0.7])
    with pytest.raises(TypeError, match="dtype"):
        network.mix(weights, torch.int32)
    with pytest.raises(ValueError, match=r"mixed: expected what mix.* 7 layers, got 6"):
        network(x, weights, network.mix(weights)[1:])
