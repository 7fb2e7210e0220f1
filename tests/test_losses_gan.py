"""Adversarial losses against their formulas in NumPy, float64."""

import numpy as np
import pytest
import torch

from dasr_ops.train.losses import GanLoss

KINDS = ("vanilla", "lsgan", "hinge", "wgan_softplus")
RELATIVISTIC = ("vanilla", "lsgan", "hinge")


def bce(logits, target):
    chance = 1 / (1 + np.exp(-logits))
    return -(target * np.log(chance) + (1 - target) * np.log(1 - chance)).mean()


def softplus(x):
    return np.log(1 + np.exp(x)).mean()


def relu(x):
    return np.maximum(x, 0).mean()


# (discriminator(real, fake), generator(fake))
PLAIN = {
    "vanilla": (lambda r, f: bce(r, 1) + bce(f, 0), lambda f: bce(f, 1)),
    "lsgan": (lambda r, f: ((r - 1) ** 2).mean() + (f**2).mean(), lambda f: ((f - 1) ** 2).mean()),
    "hinge": (lambda r, f: relu(1 - r) + relu(1 + f), lambda f: -f.mean()),
    "wgan_softplus": (lambda r, f: softplus(-r) + softplus(f), lambda f: softplus(-f)),
}

# discriminator(real - mean(fake), fake - mean(real)); the generator exchanges the roles.
RELATIVE = {
    "vanilla": (
        lambda r, f: (bce(r, 1) + bce(f, 0)) / 2,
        lambda r, f: (bce(r, 0) + bce(f, 1)) / 2,
    ),
    "lsgan": (
        lambda r, f: (((r - 1) ** 2).mean() + ((f + 1) ** 2).mean()) / 2,
        lambda r, f: (((r + 1) ** 2).mean() + ((f - 1) ** 2).mean()) / 2,
    ),
    "hinge": (
        lambda r, f: (relu(1 - r) + relu(1 + f)) / 2,
        lambda r, f: (relu(1 + r) + relu(1 - f)) / 2,
    ),
}


def logits(*shape):
    return 2 * torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 1, 8, 6), (5, 1), (7,), ()])
def test_against_the_formula(kind, shape):
    real, fake = logits(*shape), logits(*shape)
    loss = GanLoss(kind)
    discriminator, generator = PLAIN[kind]
    expected = discriminator(real.numpy(), fake.numpy())
    assert loss.discriminator(real, fake).item() == pytest.approx(expected, rel=1e-12)
    assert loss.generator(fake).item() == pytest.approx(generator(fake.numpy()), rel=1e-12)
    assert torch.equal(loss.generator(fake, real), loss.generator(fake))


@pytest.mark.parametrize("kind", RELATIVISTIC)
def test_relativistic_against_the_formula(kind):
    real, fake = logits(3, 1, 8, 6), logits(2, 1, 5, 5) - 1
    loss = GanLoss(kind, relativistic=True)
    above = real.numpy() - fake.numpy().mean()
    below = fake.numpy() - real.numpy().mean()
    discriminator, generator = RELATIVE[kind]
    expected = discriminator(above, below)
    assert loss.discriminator(real, fake).item() == pytest.approx(expected, rel=1e-12)
    expected = generator(above, below)
    assert loss.generator(fake, real).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "relativistic"), [(k, False) for k in KINDS] + [(k, True) for k in RELATIVISTIC]
)
def test_gradients(kind, relativistic):
    loss = GanLoss(kind, relativistic)
    real, fake = logits(2, 1, 3, 4).requires_grad_(), logits(2, 1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(lambda f: loss.generator(f, real.detach()), fake)


@pytest.mark.parametrize(
    ("kind", "relativistic"), [(k, False) for k in KINDS] + [(k, True) for k in RELATIVISTIC]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_huge_logits_stay_finite(kind, relativistic, dtype):
    loss = GanLoss(kind, relativistic)
    for sign in (1, -1):
        real = torch.full((2, 1, 4, 4), sign * 1e4, dtype=dtype, requires_grad=True)
        fake = torch.full((2, 1, 4, 4), -sign * 1e4, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values = loss.discriminator(real, fake), loss.generator(fake, real)
        for value in values:
            assert value.dtype == torch.float32 and torch.isfinite(value)
        sum(values).backward()
        assert torch.isfinite(real.grad).all() and torch.isfinite(fake.grad).all()


def test_the_wrong_side_of_huge_logits_costs_their_size():
    # A softplus that overflows, or a clamp, would not.
    value = GanLoss("vanilla").discriminator(torch.tensor([-1e4]), torch.tensor([1e4]))
    assert value.item() == 2e4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("relativistic", [False, True])
def test_a_step_down_moves_logits_where_they_belong(kind, relativistic):
    if relativistic and kind not in RELATIVISTIC:
        pytest.skip("refused, see below")
    loss = GanLoss(kind, relativistic)
    real, fake = (torch.full((4,), 0.5, requires_grad=True) for _ in range(2))
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    loss.generator(fake, real.detach()).backward()
    assert (fake.grad < 0).all()


def test_narrow_logits_are_summed_in_float32():
    # In float16 the sum of 10^6 ones has no room.
    real, fake = torch.ones(1000, 1000).half(), -torch.ones(1000, 1000).half()
    expected = 2 * np.log1p(np.exp(-1.0))
    assert GanLoss("vanilla").discriminator(real, fake).item() == pytest.approx(expected, rel=1e-5)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"kind: expected one of vanilla, lsgan, .* got 'wgan'"):
        GanLoss("wgan")
    with pytest.raises(ValueError, match=r"relativistic: expected False for kind 'wgan_softplus'"):
        GanLoss("wgan_softplus", relativistic=True)
    with pytest.raises(ValueError, match=r"real: expected logits, since relativistic"):
        GanLoss("hinge", relativistic=True).generator(torch.zeros(1))
    with pytest.raises(TypeError, match=r"fake: expected a floating-point tensor, got torch.int64"):
        GanLoss("hinge").generator(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"real: expected at least one value, got \[0, 1\]"):
        GanLoss("lsgan").discriminator(torch.zeros(0, 1), torch.zeros(1))
