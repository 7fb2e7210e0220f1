"""Checkpoints: every flavour loads strictly, converts both ways, and fails in one clear line."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dasr_ops.models import (
    DASR,
    CheckpointError,
    Degradation_Predictor,
    MSRResNetDynamic,
    SRResNet,
    blend,
    convert,
    label_scheme_of,
    load_dasr,
    load_srresnet,
    read_metadata,
    save_dasr,
)
from dasr_ops.models.files import atomic_path

SIZES = {"num_feat": 4, "num_block": 2, "num_models": 3}


@pytest.fixture
def model() -> DASR:
    torch.manual_seed(0)
    return DASR(
        MSRResNetDynamic(**SIZES), Degradation_Predictor(nf=5, num_params=7, num_networks=3)
    )


def _assert_same(a: torch.nn.Module, b: torch.nn.Module, dtype=torch.float32) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert second[name].dtype == torch.float32
        assert torch.equal(tensor.to(dtype).float(), second[name]), name


FLAVOURS = {
    "flat": lambda state: state,
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params_ema": state},
    "both": lambda state: {
        "params": {name: torch.zeros_like(t) for name, t in state.items()},
        "params_ema": state,
    },
    "module": lambda state: {f"module.{name}": t for name, t in state.items()},
    "params_module": lambda state: {"params": {f"module.{n}": t for n, t in state.items()}},
    "half": lambda state: {name: t.half() for name, t in state.items()},
}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("swapped", [False, True])
def test_official_pairs_load(model, tmp_path, flavour, swapped):
    g, p = tmp_path / "net_g.pth", tmp_path / "net_p.pth"
    torch.save(FLAVOURS[flavour](model.net_g.state_dict()), g)
    torch.save(FLAVOURS[flavour](model.net_p.state_dict()), p)
    loaded = load_dasr(*((p, g) if swapped else (g, p)))
    dtype = torch.float16 if flavour == "half" else torch.float32
    _assert_same(model, loaded, dtype)
    assert loaded.config == model.config
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_legacy_pickles_load(model, tmp_path):
    files = tmp_path / "g.pth", tmp_path / "p.pth"
    for file, net in zip(files, (model.net_g, model.net_p), strict=True):
        torch.save(net.state_dict(), file, _use_new_zipfile_serialization=False)
    _assert_same(model, load_dasr(*files))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("half", [False, True])
def test_safetensors_round_trip(tmp_path, scale, half):
    model = DASR(
        MSRResNetDynamic(1, 1, 6, 1, 2, scale), Degradation_Predictor(1, 3, 33, num_networks=2)
    )
    path = tmp_path / "model.safetensors"
    save_dasr(model, path, half=half, metadata={"trained_on": "noise"})
    reference = tmp_path / "reference"
    reference.touch()
    assert path.stat().st_mode == reference.stat().st_mode
    stored = load_file(path)
    assert {t.dtype for t in stored.values()} == {torch.float16 if half else torch.float32}
    metadata = read_metadata(path)
    assert metadata["trained_on"] == "noise"
    assert json.loads(metadata["dasr_ops"]) == {
        "net_g": {
            "num_in_ch": 1,
            "num_out_ch": 1,
            "num_feat": 6,
            "num_block": 1,
            "num_models": 2,
            "upscale": scale,
        },
        "net_p": {"in_nc": 1, "nf": 3, "num_params": 33, "num_networks": 2},
    }
    loaded = load_dasr(path)
    _assert_same(model, loaded, torch.float16 if half else torch.float32)
    assert loaded.config == model.config


def test_safetensors_without_metadata_loads(model, tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(model.state_dict(), path)
    _assert_same(model, load_dasr(path))


def test_convert_both_ways(model, tmp_path):
    pair = [tmp_path / "g.pth", tmp_path / "p.pth"]
    torch.save({"params_ema": model.net_g.state_dict()}, pair[0])
    torch.save({"params": model.net_p.state_dict()}, pair[1])
    one, back = tmp_path / "one.safetensors", [tmp_path / "g2.pth", tmp_path / "p2.pth"]
    convert(pair, [one])
    convert([one], back)
    _assert_same(model, load_dasr(one))
    for file, net in zip(back, (model.net_g, model.net_p), strict=True):
        for key in ("params", "params_ema"):
            net.load_state_dict(torch.load(file, weights_only=True)[key], strict=True)
    _assert_same(model, load_dasr(*back))


def test_equal_networks_are_equal_files(model, tmp_path):
    code = (
        "import sys; from dasr_ops.models import load_dasr, save_dasr\n"
        "metadata = {name: name for name in 'abcdefgh'}\n"
        "save_dasr(load_dasr(sys.argv[1]), sys.argv[2], metadata=metadata)"
    )
    save_dasr(model, tmp_path / "source.safetensors")
    for name in ("a", "b", "c"):  # the library's order is another in each process
        arguments = [tmp_path / "source.safetensors", tmp_path / f"{name}.safetensors"]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    first, *others = [(tmp_path / f"{n}.safetensors").read_bytes() for n in ("a", "b", "c")]
    assert all(other == first for other in others)
    assert (8 + int.from_bytes(first[:8], "little")) % 8 == 0
    _assert_same(model, load_dasr(tmp_path / "a.safetensors"))
    assert read_metadata(tmp_path / "a.safetensors")["h"] == "h"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.int(), "expected real numbers, got torch.int32"),
        (lambda t: t.to_sparse(), "expected plain tensors of real numbers, found torch.float32"),
        (lambda t: t.to(torch.complex64), "expected plain tensors of real numbers, found torch.c"),
    ],
)
def test_tensors_of_other_kinds(model, tmp_path, change, message):
    state = model.state_dict()
    state["net_g.conv_last.weight"] = change(state["net_g.conv_last.weight"])
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_dasr(tmp_path / "m.pth")


def test_an_empty_average_is_none(model, tmp_path):
    torch.save({"params_ema": {}, "params": model.state_dict()}, tmp_path / "m.pth")
    _assert_same(model, load_dasr(tmp_path / "m.pth"))


def test_blend_takes_the_labels_that_are_given(model, tmp_path):
    save_dasr(model, tmp_path / "other.safetensors")
    pair = [tmp_path / "g.pth", tmp_path / "p.pth"]
    for file, net in zip(pair, (model.net_g, model.net_p), strict=True):
        torch.save({"params": net.state_dict()}, file)
    output = [tmp_path / "o.safetensors"]
    with pytest.raises(ValueError, match="labels"):
        convert(pair, output, blend_with=tmp_path / "other.safetensors")
    convert(pair, output, blend_with=tmp_path / "other.safetensors", labels="unified")
    _assert_same(model, load_dasr(*output))
    with pytest.raises(ValueError, match=r"blend_with: expected a \.safetensors file, got"):
        convert(output, [tmp_path / "x.safetensors"], blend_with=pair[0])


def test_blend(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.add_(torch.randn_like(tensor))
    before = copy.deepcopy(model.state_dict())
    _assert_same(blend(model, other, 0), model)
    _assert_same(blend(model, other, 1), other)
    half = blend(model.to(torch.float64), other, 0.5).state_dict()
    for name, tensor in other.state_dict().items():
        assert half[name].dtype == torch.float64
        torch.testing.assert_close(half[name], (before[name].double() + tensor) / 2)
    assert all(torch.equal(before[name], t.float()) for name, t in model.state_dict().items())
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share: expected 0 to 1"):
            blend(model, other, share)
    other.label_scheme = "official"
    with pytest.raises(ValueError, match=r"blend: other: expected a network of .*official"):
        blend(model, other, 0.5)


def test_convert_keeps_metadata_and_sources(model, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_dasr(model, first, metadata={"scheme": "ours"})
    convert([first], [second], half=True)
    assert read_metadata(second)["scheme"] == "ours"
    before = second.read_bytes()
    with pytest.raises(FileExistsError, match="exists"):
        convert([first], [second])
    assert second.read_bytes() == before
    with pytest.raises(ValueError, match="is a source"):
        convert([first], [tmp_path / "." / "a.safetensors"], overwrite=True)
    convert([first], [second], overwrite=True)
    assert read_metadata(second) == read_metadata(first)
    _assert_same(model, load_dasr(second))


def test_the_scheme_of_labels_is_kept(model, tmp_path):
    other = DASR(model.net_g, model.net_p, "official")
    one, pair = tmp_path / "one.safetensors", [tmp_path / "g.pth", tmp_path / "p.pth"]
    for network in (model, other):
        save_dasr(network, one)
        save_dasr(network, *pair)
        assert read_metadata(one)["labels"] == network.label_scheme
        for files in ([one], pair, pair[::-1]):
            assert label_scheme_of(*files) == network.label_scheme
            assert load_dasr(*files).label_scheme == network.label_scheme
    save_dasr(model, one, metadata={"labels": "official"})
    assert load_dasr(one).label_scheme == "official"
    convert([one], [tmp_path / "two.safetensors"])
    assert load_dasr(tmp_path / "two.safetensors").label_scheme == "official"
    save_dasr(model, pair[0], tmp_path / "p2.pth")
    with pytest.raises(CheckpointError, match="different schemes of labels: official, unified"):
        load_dasr(tmp_path / "g.pth", tmp_path / "p.pth")


def test_files_that_do_not_say_their_scheme_of_labels(model, tmp_path):
    """Ours before they said it, and the released ones."""
    old = tmp_path / "old.safetensors"
    save_file(model.state_dict(), old)
    assert load_dasr(old).label_scheme == label_scheme_of(old) == "unified"
    pair = [tmp_path / "g.pth", tmp_path / "p.pth"]
    torch.save({"params_ema": model.net_g.state_dict()}, pair[0])
    torch.save(model.net_p.state_dict(), pair[1])
    assert load_dasr(*pair).label_scheme == label_scheme_of(*pair) == "official"
    convert(pair, [tmp_path / "one.safetensors"])
    assert load_dasr(tmp_path / "one.safetensors").label_scheme == "official"
    convert(pair, [tmp_path / "mine.safetensors"], labels="unified")
    assert load_dasr(tmp_path / "mine.safetensors").label_scheme == "unified"
    convert([tmp_path / "mine.safetensors"], pair, labels="official", overwrite=True)
    assert label_scheme_of(pair[1]) == "official"
    with pytest.raises(CheckpointError, match="no such file"):
        label_scheme_of(tmp_path / "none.pth")
    with pytest.raises(TypeError, match="label_scheme: expected a str, got None"):
        DASR(model.net_g, model.net_p, None)


def test_static_network_loads(tmp_path):
    static = SRResNet(num_feat=4, num_block=3, upscale=2)
    torch.save({"params": static.state_dict()}, tmp_path / "static.pth")
    loaded = load_srresnet(tmp_path / "static.pth")
    _assert_same(static, loaded)
    assert loaded.config == static.config
    with pytest.raises(CheckpointError, match=r"conv_first.weight: expected 5 dimensions"):
        torch.save(Degradation_Predictor(nf=2).state_dict(), tmp_path / "p.pth")
        load_dasr(tmp_path / "static.pth", tmp_path / "p.pth")


def _write_g(tmp_path: Path, model: DASR, edit) -> tuple[Path, Path]:
    state = model.net_g.state_dict()
    edit(state)
    g, p = tmp_path / "g.pth", tmp_path / "p.pth"
    torch.save(state, g)
    torch.save(model.net_p.state_dict(), p)
    return g, p


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("conv_hr.bias"), "missing keys: conv_hr.bias$"),
        (lambda s: s.pop("conv_first.weight"), "expected the files of G and of P"),
        (lambda s: s.pop("conv_last.weight"), "missing keys: conv_last.weight$"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected keys: extra$"),
        (
            lambda s: s.update({f"body.9.conv{i}.weight": torch.ones(1) for i in range(6)}),
            "unexpected keys: body.9.conv0.weight, .* and 2 more",
        ),
        (
            lambda s: s.update({"conv_hr.bias": torch.ones(3, 9)}),
            r"shapes: conv_hr.bias \[3, 9\] instead of \[3, 4\]$",
        ),
        (
            lambda s: s.update({"upconv1.weight": torch.ones(3, 20, 4, 3, 3)}),
            "upconv1.weight: expected 4 or 9 times as many outputs as inputs",
        ),
        (
            lambda s: s.update({"conv_last.weight": torch.ones(3, 1, 4, 3, 3)}),
            "num_out_ch: expected num_in_ch = 3",
        ),
        (lambda s: s.update(epoch=3), "found int at 'epoch'"),
    ],
)
def test_wrong_contents_are_named(model, tmp_path, edit, message):
    files = _write_g(tmp_path, model, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_dasr(*files)
    text = str(caught.value)
    assert "\n" not in text
    assert "g.pth" in text


def test_networks_that_do_not_fit(model, tmp_path):
    g, p = tmp_path / "g.pth", tmp_path / "p.pth"
    torch.save(model.net_g.state_dict(), g)
    torch.save(Degradation_Predictor(nf=2, num_networks=4).state_dict(), p)
    with pytest.raises(CheckpointError, match="num_networks = 3 to fit net_g, got 4"):
        load_dasr(g, p)
    with pytest.raises(CheckpointError, match="expected the files of G and of P, got G and G"):
        load_dasr(g, g)
    with pytest.raises(CheckpointError, match="the file of G alone, give the other as well"):
        load_dasr(g)


class _Evil:
    def __reduce__(self):
        return print, ("code of a checkpoint ran",)


def _broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / ("bad.safetensors" if kind.endswith("safetensors") else "bad.pth")
    if kind == "directory":
        path.mkdir()
    elif kind == "evil":
        path.write_bytes(pickle.dumps({"conv_first.weight": _Evil()}))
    elif kind == "truncated":
        torch.save({"conv_first.weight": torch.ones(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "truncated safetensors":
        save_file({"net_g.x": torch.ones(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind.startswith("text"):
        path.write_text("hello")
    elif kind.startswith("empty"):
        path.touch()
    elif kind == "list":
        torch.save([torch.ones(1)], path)
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "missing safetensors",
        "directory",
        "evil",
        "truncated",
        "truncated safetensors",
        "text",
        "text safetensors",
        "empty",
        "empty safetensors",
        "list",
    ],
)
def test_broken_files_give_one_line(tmp_path, capsys, kind):
    path = _broken(tmp_path, kind)
    with pytest.raises(CheckpointError) as caught:
        load_dasr(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert len(text) > len(f"{path}: ") + 5
    assert "\n" not in text
    assert "ran" not in capsys.readouterr().out


def test_other_suffixes_are_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"expected a name that ends in .safetensors or .pth"):
        load_dasr(tmp_path / "model.onnx")
    for paths in (("a.pth",), ("a.safetensors", "b.safetensors"), (), ("a.pth", "a.pth")):
        with pytest.raises(ValueError, match=r"save_dasr: paths: expected one .safetensors file"):
            save_dasr(model, *paths)
    with pytest.raises(TypeError, match="model: expected a DASR, got Linear"):
        save_dasr(torch.nn.Linear(1, 1), tmp_path / "a.safetensors")


def test_metadata_must_agree_with_the_shapes(model, tmp_path):
    path = tmp_path / "m.safetensors"
    wrong = {**model.config, "net_g": {**model.config["net_g"], "upscale": 2}}
    save_file(model.state_dict(), path, metadata={"dasr_ops": json.dumps(wrong)})
    with pytest.raises(CheckpointError, match=r'metadata says .*"upscale": 2.* shapes say'):
        load_dasr(path)


def test_half_refuses_values_that_overflow(model, tmp_path):
    with torch.no_grad():
        model.net_g.conv_hr.bias[1, 2] = 7e4
    with pytest.raises(ValueError, match=r"half: net_g.conv_hr.bias holds values beyond"):
        save_dasr(model, tmp_path / "m.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_atomic_path_replaces_or_leaves_alone(tmp_path):
    final = tmp_path / "final"
    final.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert final.read_text() == "old"
    with pytest.raises(FileExistsError), atomic_path(final, replace=False) as temporary:
        temporary.write_text("new")
    assert final.read_text() == "old"
    with atomic_path(final) as temporary:
        assert temporary.parent == final.parent
        temporary.write_text("new")
    assert final.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]
    reference = tmp_path / "reference"
    reference.touch()
    assert final.stat().st_mode == reference.stat().st_mode
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path):
        pass


def test_killed_in_mid_write_leaves_the_old_file(tmp_path):
    """SIGKILL between the temporary file's content and its renaming."""
    final = tmp_path / "final"
    final.write_text("old")
    script = f"""
        import os, signal
        from dasr_ops.models.files import atomic_path
        with atomic_path({str(final)!r}) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)])
    assert result.returncode == -9
    assert final.read_text() == "old"
    left = [p.name for p in tmp_path.iterdir() if p != final]
    assert len(left) == 1
    assert left[0].startswith(".dasr-ops-")
