"""`dasr convert`: weights from one kind of file to another, and networks between two."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.cli import main
from dasr_ops.models import load_dasr, read_metadata, save_dasr, shipped

from .demo_tools import tiny_model


@pytest.fixture
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_dasr(tiny_model(), path)
    return path


def test_convert(tmp_path, weights, capsys):
    g, p, back = tmp_path / "g.pth", tmp_path / "p.pth", tmp_path / "back.safetensors"
    assert main(["convert", str(weights), "-o", str(g), str(p)]) == 0
    assert main(["convert", str(p), str(g), "-o", str(back), "--half"]) == 0
    assert load_dasr(back).label_scheme == load_dasr(weights).label_scheme == "unified"
    other = tmp_path / "other.safetensors"
    assert main(["convert", str(p), str(g), "-o", str(other), "--labels", "official"]) == 0
    assert load_dasr(other).label_scheme == "official"
    for name, tensor in load_dasr(weights).state_dict().items():
        assert torch.equal(load_dasr(g, p).state_dict()[name], tensor)
        assert torch.equal(load_dasr(back).state_dict()[name], tensor.half().float())
    named = [str(weights), "-o", str(tmp_path / "named.safetensors"), "--metadata", "title=a=b"]
    assert main(["convert", *named, "licence=CC0-1.0"]) == 0
    metadata = read_metadata(tmp_path / "named.safetensors")
    assert (metadata["title"], metadata["licence"]) == ("a=b", "CC0-1.0")
    capsys.readouterr()
    for wrong in ("title", "=x", "labels=official"):
        assert main(["convert", *named[:-1], wrong, "--overwrite"]) == 2
        assert f"--metadata: expected NAME=VALUE, got {wrong}" in capsys.readouterr().err
    assert main(["convert", str(weights), "-o", str(g), str(p), "--metadata", "a=b"]) == 2
    assert "g.pth holds none" in capsys.readouterr().err
    assert main(["convert", str(weights), "-o", str(back)]) == 2
    assert "exists; see --overwrite" in capsys.readouterr().err
    assert main(["convert", str(weights), "-o", str(back), "--overwrite"]) == 0
    assert main(["convert", str(weights), "-o", str(weights), "--overwrite"]) == 2
    for blend in ("small", "=0.5", "small=2", "small=x", "small=nan"):
        assert main(["convert", *named[:-2], "--blend", blend, "--overwrite"]) == 2
        assert f"--blend {blend}: expected WEIGHTS=SHARE" in capsys.readouterr().err
    assert main(["convert", *named[:-2], "--blend", "no.safetensors=1", "--overwrite"]) == 1
    assert "no.safetensors: no such file" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "no.pth"), "-o", str(tmp_path / "x.safetensors")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main(["convert", str(weights), "-o", str(tmp_path / "x.txt")]) == 2


def test_blend(tmp_path, weights, capsys, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    model = load_dasr(weights)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.net_g.conv_last.bias.add_(1.0)
    save_dasr(model, tmp_path / "small.safetensors", metadata={"title": "small", "licence": "CC0"})
    save_dasr(other, tmp_path / "dasr.safetensors", metadata={"title": "dasr", "licence": "CC0"})
    output = tmp_path / "between=.safetensors"
    arguments = ["convert", "small", "--output", str(output), "--blend"]
    assert main([*arguments, "dasr=0.25"]) == 0
    between, expected = load_dasr(output).state_dict(), model.state_dict()
    expected["net_g.conv_last.bias"] = model.net_g.conv_last.bias + 0.25
    assert between.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(between[name], tensor, rtol=0, atol=1e-6)
    metadata = read_metadata(output)  # what is true of both
    assert metadata["licence"] == "CC0" and "title" not in metadata
    assert main([*arguments, f"{output}=1", "--overwrite"]) == 2  # never its own source
    other.label_scheme = "official"
    save_dasr(other, tmp_path / "dasr.safetensors")
    capsys.readouterr()
    assert main([*arguments, "dasr=0.25", "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "'unified'" in said and "'official'" in said and len(said.splitlines()) == 1
    assert main([*arguments, "dasr-gan=0.25", "--overwrite"]) == 1
    assert "dasr-gan: this build comes without these weights" in capsys.readouterr().err
