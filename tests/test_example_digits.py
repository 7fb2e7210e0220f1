"""The tutorial of docs/examples/digits.py works as it says."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dasr_ops.routing import AttentionRouter

pytest.importorskip("sklearn", reason="the example needs scikit-learn")

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_networks_learn_the_digits(digits, capsys):
    accuracies = digits.main(epochs=8)
    assert set(accuracies) == {"static", "dynamic"}
    # Chance is 0.1.
    assert min(accuracies.values()) >= 0.95
    printed = capsys.readouterr().out
    for name, accuracy in accuracies.items():
        assert name in printed and f"{accuracy:.3f}" in printed


def test_training_data_is_held_out(digits):
    train_images, train_labels, test_images, test_labels = digits.load_data()
    assert train_images.shape == (1347, 1, 8, 8) and test_images.shape == (450, 1, 8, 8)
    assert len(train_labels) == 1347 and test_labels.unique().numel() == 10
    # No image is in both parts: those nearest to each other still differ.
    assert torch.cdist(train_images.flatten(1), test_images.flatten(1)).min() > 0


def test_training_is_reproducible_and_ends_annealed(digits):
    images, labels = (part[:256] for part in digits.load_data()[:2])
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        network = digits.make_network(dynamic=True)
        digits.train(network, images, labels, epochs=2)
        states.append(network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    routers = [module for module in network.modules() if isinstance(module, AttentionRouter)]
    assert [router.temperature.item() for router in routers] == [1.0, 1.0]
    weights = torch.cat([router(torch.rand(9, router.squeeze.in_features)) for router in routers])
    assert weights.std(0).min() > 1e-5  # the mixture still depends on the image
