"""Pixel and regression losses against their formulas in NumPy, float64."""

import numpy as np
import pytest
import torch

from dasr_ops.train.losses import pixel_loss, regression_loss

FORMULAS = {
    "l1": lambda d: np.abs(d).mean(),
    "l2": lambda d: (d**2).mean(),
    "charbonnier": lambda d: np.sqrt(d**2 + 1e-6).mean(),
}


@pytest.mark.parametrize("criterion", FORMULAS)
@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 3, 1, 1), (4,)])
def test_pixels_against_the_formula(criterion, shape):
    output, target = torch.rand(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)
    expected = FORMULAS[criterion]((output - target).numpy())
    exact = pixel_loss(criterion)(output, target)
    assert exact.dtype == torch.float64 and exact.shape == ()
    assert exact.item() == pytest.approx(expected, rel=1e-14)
    single = pixel_loss(criterion)(output.float(), target.float())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)  # a few roundings


@pytest.mark.parametrize("criterion", FORMULAS)
def test_pixels_gradients(criterion):
    output = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pixel_loss(criterion), (output, target))


@pytest.mark.parametrize("criterion", FORMULAS)
def test_equal_pictures_have_finite_gradients(criterion):
    output = torch.rand(1, 3, 4, 4, requires_grad=True)
    pixel_loss(criterion)(output, output.detach()).backward()
    assert torch.equal(output.grad, torch.zeros_like(output))


@pytest.mark.parametrize("criterion", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_pictures_are_compared_in_float32(criterion, dtype):
    output, target = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    narrow = output.to(dtype).requires_grad_()
    expected = FORMULAS[criterion](narrow.detach().double().numpy() - target.double().numpy())
    with torch.autocast("cpu", dtype=dtype):
        loss = pixel_loss(criterion)(narrow, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert narrow.grad.dtype == dtype and torch.isfinite(narrow.grad).all()


def test_pixel_loss_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"criterion: expected one of l1, l2, .* got 'huber'"):
        pixel_loss("huber")
    loss = pixel_loss("l1")
    with pytest.raises(ValueError, match=r"target: .*\[2, 3, 4, 4\], got \[1, 3, 4, 4\]"):
        loss(torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4))
    with pytest.raises(TypeError, match=r"target: expected a floating-point tensor, got .*uint8"):
        loss(torch.rand(2), torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"output: expected a Tensor, got ndarray"):
        loss(np.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"output: expected at least one value, got \[0, 3\]"):
        loss(torch.rand(0, 3), torch.rand(0, 3))


@pytest.mark.parametrize("criterion", ["l1", "l2"])
@pytest.mark.parametrize("weighted", [False, True])
def test_regression_against_the_formula(weighted, criterion):
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(6, 33)), rng.normal(size=(6, 33))
    entries = tuple(rng.uniform(0, 3, 33)) if weighted else ()
    weights = np.array(entries) if weighted else np.ones(33)
    d = predicted - target
    sizes = {"l1": np.abs(d), "l2": d**2}[criterion]
    expected = (sizes * weights).sum() / (6 * 33)
    loss = regression_loss(torch.tensor(predicted), torch.tensor(target), entries, criterion)
    assert loss.item() == pytest.approx(expected, rel=1e-14)
    if not weighted:
        ones = [1.0] * 33
        ones = regression_loss(torch.tensor(predicted), torch.tensor(target), ones, criterion)
        assert ones.item() == pytest.approx(loss.item(), rel=1e-14)


def test_an_entry_without_weight_has_no_gradient():
    predicted = torch.rand(5, 33, requires_grad=True)
    entries = [1.0] * 33
    entries[8] = 0.0
    regression_loss(predicted, torch.rand(5, 33), entries).backward()
    assert not predicted.grad[:, 8].any() and (predicted.grad[:, 9] != 0).all()


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_regression_gradients(criterion):
    predicted = torch.rand(3, 33, dtype=torch.float64, requires_grad=True)
    target = torch.rand(3, 33, dtype=torch.float64)
    entries = [0.1 * i for i in range(33)]

    def loss(p):
        return regression_loss(p, target, entries, criterion)

    assert torch.autograd.gradcheck(loss, predicted)


def test_regression_is_float32_under_autocast():
    predicted, target = torch.rand(6, 33).bfloat16(), torch.rand(6, 33)
    difference = predicted.double() - target.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = regression_loss(predicted, target, [2.0] * 33)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 * difference.abs().mean().item(), rel=1e-5)


def test_regression_refuses_what_makes_no_sense():
    v = torch.rand(2, 33)
    with pytest.raises(ValueError, match=r"entries: expected 33 weights, got 2"):
        regression_loss(v, v, [1.0, 1.0])
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"entries: expected finite weights >= 0"):
            regression_loss(v, v, [bad] * 33)
    with pytest.raises(ValueError, match=r"target: expected the shape of predicted"):
        regression_loss(v, torch.rand(2, 32))
    with pytest.raises(ValueError, match=r"criterion: expected one of .*l1.*l2.*, got 'huber'"):
        regression_loss(v, v, criterion="huber")
