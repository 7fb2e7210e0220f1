"""What a start of the program imports."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dasr_ops import _backends
from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic, save_dasr

# Each takes from a fifth of a second to as long as torch itself.
HEAVY = (
    *("torch._dynamo", "torch._inductor", "sympy", "triton", "scipy", "matplotlib", "sklearn"),
    *("skimage", "pandas", "torchvision", "dasr_ops.train", "dasr_ops.bench", "dasr_ops.demo"),
    *("av", "gradio", "onnx", "onnxruntime"),
)


def test_upscaling_imports_nothing_heavy(tmp_path):
    pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")
    net_g = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2, upscale=2)
    weights, source, target = (tmp_path / n for n in ("w.safetensors", "lr.png", "hr.png"))
    save_dasr(DASR(net_g, Degradation_Predictor(nf=4, num_networks=2)), weights)
    noise = np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source)
    command = ["upscale", str(source), "-o", str(target), "--weights", str(weights)]
    script = (
        "import sys\n"
        "from dasr_ops.cli import main\n"
        f"assert main({[*command, '--tile', '24', '--overlap', '4']!r}) == 0\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    bare = f"import torch, sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    found, floor = (_printed(text) for text in (script, bare))
    assert Image.open(target).size == (72, 80)
    assert found - floor == set()


def _printed(script: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_marked_constant_as_pytorch_does(monkeypatch):
    def ours() -> None: ...

    def pytorchs() -> None: ...

    torch.compiler.assume_constant_result(pytorchs)  # imports torch._dynamo
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch._dynamo")
        assert _backends.constant(ours) is ours
    assert vars(ours) == vars(pytorchs) != {}
    assert vars(_backends._unavailable) == vars(pytorchs)
