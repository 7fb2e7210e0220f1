"""The benchmark of a training step: its formulations do the same."""

import pytest
import torch

from benches import training_step as bench
from dasr_ops.train.config import NetworkConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def test_formulations_agree_and_are_tabulated(tmp_path):
    torch.manual_seed(0)
    config = bench.settings(bench.random_vgg(tmp_path / "vgg19.pth"), 1, 64, "float32")
    config.network = NetworkConfig(num_feat=16, num_block=2, predictor_feat=8, discriminator_feat=8)
    config.data.source_size = 80
    config.loss.perceptual.layers = {"conv1_2": 1.0, "conv2_2": 1.0}
    device = torch.device("cpu")
    steps = {name: bench.Step(name, config, device) for name in bench.FORMULATIONS}
    batch, make = bench.made_batch(config, device)
    assert len(make()) == len(batch) == 1
    errors = bench.check(steps, batch)
    assert errors[bench.OFFICIAL] == 0
    # Rounding flips the sign of some features before a ReLU, each flip errs by a whole derivative.
    assert 0 < max(errors.values()) < 1e-2
    for number, step in enumerate(steps.values()):
        step(batch, number)
    report = {
        "machine": {"name": "CPU", "threads": 1, "torch": "2", "dasr_ops": "0", "commit": "c"},
        "setting": {"precision": "float32", "batch": 1, "patch": 64, "rounds": 2},
        "errors": errors,
        "seconds": {
            **dict(zip(bench.FORMULATIONS, ([1.0, 2.0], [2.0, 4.0], [3.0, 3.0]), strict=True)),
            "synthesis": [0.15, 0.15],
        },
    }
    text = bench.table(report)
    assert "| official | 3.000 | 2.00 | 0.0e+00 |" in text
    assert "10 % of our step" in text
