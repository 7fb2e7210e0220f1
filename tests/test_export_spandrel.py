"""Our files are recognised by their keys, and load in spandrel where it is installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dasr_ops.models import DASR, MSRResNetDynamic, SRResNet, save_dasr
from dasr_ops.models.export import merge, save_merged
from dasr_ops.models.export import spandrel as ours

from .export_tools import pictures, tiny_model

ROOT = Path(__file__).resolve().parents[1]

needs_spandrel = pytest.mark.skipif(
    importlib.util.find_spec("spandrel") is None or importlib.util.find_spec("einops") is None,
    reason="spandrel is not installed",
)

# Two of spandrel's architectures, not ours, take functions of torchvision: where there is none for
# this torch, names that are never called stand in for it.
LOAD = """
import sys
from unittest import mock

try:
    import torchvision
except Exception:
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = mock.MagicMock()
import spandrel
import torch

from dasr_ops.models.export.spandrel import architectures, register

folder = sys.argv[1]
own = spandrel.ArchRegistry()
register(own)
assert len(own) == len(architectures()) == 2
register()
register()
for kind in ("dasr.safetensors", "merged.safetensors", "merged.pth"):
    for path in sorted(__import__("pathlib").Path(folder).glob(f"*-{kind}")):
        lr = torch.load(path.with_name(path.name.replace(kind, "lr.pt")))
        model = spandrel.ModelLoader().load_from_file(path)
        assert isinstance(model, spandrel.ImageModelDescriptor)
        sr = model(lr)
        half = model.half()(lr.half())
        assert half.dtype == torch.float16
        found = {
            "id": model.architecture.id, "scale": model.scale, "purpose": model.purpose,
            "channels": (model.input_channels, model.output_channels),
            "tiling": model.tiling.name, "tags": model.tags, "sr": sr, "half": half,
        }
        torch.save(found, path.with_suffix(path.suffix + ".found"))
"""


def test_our_files_are_recognised():
    model = tiny_model(4)
    merged = merge(model, torch.rand(33)).state_dict()
    assert ours.detect_dasr(model.state_dict())
    assert ours.detect_merged(merged)
    assert not ours.detect_merged(model.state_dict())
    assert not ours.detect_dasr(merged)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("conv_hr.weight"),
        lambda state: state.update({"body.0.rdb1.conv1.weight": torch.zeros(2, 2, 3, 3)}),
        lambda state: state.update({"conv_first.weight": torch.zeros(3, 2, 2, 3, 3)}),
        lambda state: state.update({"conv_first.weight": "text"}),
        lambda state: state.clear(),
    ],
)
def test_other_files_are_not(change):
    state = merge(tiny_model(), torch.rand(33)).state_dict()
    change(state)
    assert not ours.detect_merged(state)
    assert not ours.detect_dasr(state)


def test_files_of_one_network_are_not():
    model = tiny_model()
    for network in (model.net_g, model.net_p):
        assert not ours.detect_merged(network.state_dict())
        assert not ours.detect_dasr(network.state_dict())


@pytest.mark.parametrize(
    ("scale", "experts", "channels", "num_params"), [(2, 3, 3, 33), (3, 1, 1, 7), (4, 5, 3, 33)]
)
def test_sizes_are_read_off_the_shapes(scale, experts, channels, num_params):
    model = tiny_model(scale, experts, channels, num_params, feat=6, blocks=3)
    config = ours.dasr_config(model.state_dict())
    assert config == model.config
    DASR.from_config(config).load_state_dict(model.state_dict())
    static = merge(model, torch.rand(num_params))
    assert ours.merged_config(static.state_dict()) == static.config
    SRResNet(**static.config).load_state_dict(static.state_dict())


@pytest.mark.parametrize("size", [(150, 70), (9, 200), (1, 1)])
def test_tiles_change_nothing(size):
    """Four times the receptive field of 7 is the least: tiles of 28 with 14 of their own."""
    model = tiny_model(2)
    assert isinstance(model.net_g, MSRResNetDynamic)
    lr = pictures(model, 1, *size)
    # One brightness per column: tiles of their own would have other degradations.
    lr = lr * torch.linspace(0.1, 1, size[1])
    with torch.no_grad():
        expected = model(lr)
    found = ours.upscale_whole(model, lr, tile=1)
    tolerance = 1e-5 * max(1, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_without_spandrel_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ImportError, match=r"spandrel cannot be imported .*: pip install spandrel"):
        ours.register()


@needs_spandrel
def test_spandrel_loads_our_files(tmp_path):
    expected = {}
    for scale, channels in [(2, 3), (3, 1), (4, 3)]:
        model = tiny_model(scale, 3, channels)
        lr = pictures(model, 1, 23, 37)
        torch.save(lr, tmp_path / f"x{scale}-lr.pt")
        v = torch.rand(1, 33)
        save_dasr(model, tmp_path / f"x{scale}-dasr.safetensors")
        save_merged(merge(model, v), tmp_path / f"x{scale}-merged.safetensors")
        save_merged(merge(model, v), tmp_path / f"x{scale}-merged.pth")
        with torch.no_grad():
            expected[scale] = {"DASR": model(lr), "MSRResNet": model(lr, degradation=v)}
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    files = sorted(tmp_path.glob("*.found"))
    assert len(files) == 9
    for file in files:
        scale, dasr = int(file.name[1]), "dasr" in file.name
        found = torch.load(file)
        assert found["id"] == ("DASR" if dasr else "MSRResNet")
        assert (found["scale"], found["purpose"]) == (scale, "SR")
        assert found["channels"] == ((1, 1) if scale == 3 else (3, 3))
        assert found["tiling"] == ("INTERNAL" if dasr else "SUPPORTED")
        assert found["tags"][:2] == ["6nf", "2nb"]
        reference = expected[scale][found["id"]].clamp(0, 1)
        # Layers of a hundred terms each, relative to the largest value: some 1e-6 of rounding.
        tolerance = 1e-5 * max(1, float(expected[scale][found["id"]].abs().max()))
        torch.testing.assert_close(found["sr"], reference, rtol=0, atol=tolerance)
        assert torch.isfinite(found["half"]).all()
        # P in float16 as well, whose rounding the mixing weights amplify.
        assert (found["half"].float() - reference).abs().mean() < 2e-2
