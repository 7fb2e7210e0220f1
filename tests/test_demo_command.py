"""``dasr demo``: ports, options, endings."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.cli import UsageError, _weights, main
from dasr_ops.demo import server
from dasr_ops.models import save_dasr, shipped

from .demo_tools import tiny_model

ROOT = Path(__file__).resolve().parents[1]


# --- server


def test_ports():
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(server.ServerError, match=f"--port {port}: address already in use"):
            server.listen("127.0.0.1", port)
    with server.listen("127.0.0.1", None) as one, server.listen("127.0.0.1", None) as two:
        assert server.FIRST_PORT <= one.getsockname()[1] < two.getsockname()[1]
    with pytest.raises(server.ServerError, match="--host nowhere"):
        server.listen("nowhere.invalid", None)


# --- command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--tile", "20"], "--tile 20"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (
            ["--weights", "a.png"],
            "--weights a.png: expected small, small-gan, dasr, dasr-gan or a",
        ),
        (["--weights", "g.pth"], "--weights: g.pth: no such file"),
        (["--weights", "g.pth", "a.safetensors"], "g.pth: expected the .pth files of G and P afte"),
        (["--device", "nonsense"], "--device nonsense"),
        (["--share"], "share"),
    ],
)
def test_usage_errors(capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(server, "check_gradio", lambda: None)
    assert main(["demo", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_errors_while_serving_are_not_those_of_options(capsys, monkeypatch):
    monkeypatch.setattr(server, "check_gradio", lambda: None)
    for error in (ValueError("odd"), RuntimeError("odd\nmore"), OSError(28, "No space left")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(server, "_run", fail)
        monkeypatch.setattr(server, "application", lambda *_: None)
        assert main(["demo", "--device", "cpu", "--port", "0"]) == 1
        said = capsys.readouterr().err
        assert "--device" not in said and len(said.splitlines()) == 1


def test_a_full_disk_is_no_traceback(capsys, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(server, "check_gradio", lambda: None)
    monkeypatch.setattr(server.tempfile, "TemporaryDirectory", full)
    assert main(["demo", "--port", "0"]) == 1
    assert capsys.readouterr().err.endswith("No space left on device\n")


def test_taken_port_is_a_usage_error(capsys, monkeypatch):
    monkeypatch.setattr(server, "check_gradio", lambda: None)
    with server.listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert main(["demo", "--port", port]) == 2
    assert f"dasr demo: error: --port {port}: address already in use" in capsys.readouterr().err


def test_missing_gradio_is_named(capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert main(["demo"]) == 2
    assert "Gradio is missing: pip install 'dasr-ops[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["5.49.1", "6.9.0", "6.18", "0.1.dev0"])
def test_old_gradio_is_named(capsys, monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert main(["demo"]) == 2
    said = f"Gradio 6.19 or later is needed, got {version}: pip install --upgrade 'dasr-ops[demo]'"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("version", ["6.19.0", "6.20", "6.100.1", "7.0.0b1"])
def test_new_gradio_is_taken(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    server.check_gradio()


def test_weights_are_grouped_and_named():
    paths = [Path(p) for p in ("a/x.safetensors", "b/x.safetensors", "g.pth", "p.pth")]
    groups = _weights.grouped(paths)
    assert groups == [(paths[0],), (paths[1],), (paths[2], paths[3])]
    assert _weights.short_names(groups[:1]) == ["x"]
    assert _weights.short_names(groups) == ["a/x", "b/x", "g"]
    assert _weights.short_names([groups[0], groups[0]]) == ["1. x", "2. x"]
    with pytest.raises(UsageError, match="expected the"):
        _weights.grouped([paths[2], paths[0]])


def test_all_weights_of_the_package_are_offered(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    monkeypatch.setattr(server, "check_gradio", lambda: None)
    assert main(["demo"]) == 2
    assert "this build comes without weights" in capsys.readouterr().err
    offered = {}
    monkeypatch.setattr(server, "serve", lambda models, **_: offered.update(models))
    for name, scale in (("dasr", 2), ("small", 4)):
        save_dasr(tiny_model(scale), tmp_path / f"{name}.safetensors")
    assert main(["demo"]) == 0
    assert {name: model.upscale for name, model in offered.items()} == {"small": 4, "dasr": 2}
    assert next(iter(offered)) == "small"


@pytest.mark.slow
def test_nothing_else_needs_gradio():
    code = "import sys, dasr_ops, dasr_ops.cli.demo, dasr_ops.models, dasr_ops.demo\n"
    code += "assert 'gradio' not in sys.modules and 'fastapi' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("signal_", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ends_cleanly(tmp_path, signal_, code):
    pytest.importorskip("gradio", reason="the page is made by Gradio")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home")}
    arguments = [sys.executable, "-m", "dasr_ops", "demo", "--port", "0"]
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().split()[0]
        host, port = address.removeprefix("http://").split(":")
        assert host == "127.0.0.1"
        for _ in range(100):
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                opener.open(address, timeout=60).close()
                break
            except urllib.error.HTTPError:
                raise
            except OSError:  # not yet listening
                time.sleep(0.1)
        else:
            pytest.fail("the page was never there")
        assert any(tmp_path.glob("dasr-demo-*"))
        process.send_signal(signal_)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
