"""The command `dasr inspect`: what it prints, writes and draws, bad pictures and command lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.cli import _inspect_plot, main
from dasr_ops.cli import inspect as command
from dasr_ops.models import (
    DASR,
    Degradation_Predictor,
    MSRResNetDynamic,
    Upscaler,
    describe_prediction,
    load_degradation,
    save_dasr,
)
from dasr_ops.models.upscale import PREDICT_PIXELS
from dasr_ops.train.degradations import LAYOUT, labels, sample

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A network that says different things of different pictures, two rounds among them."""
    torch.manual_seed(0)
    net_p = Degradation_Predictor(nf=4, num_networks=2)
    with torch.no_grad():
        net_p.ConvNet[-1].bias.copy_(labels(sample(torch.Generator(), 1, "severe"))[0])
    model = DASR(MSRResNetDynamic(num_feat=4, num_block=1, num_models=2, upscale=2), net_p)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_dasr(model, path)
    save_dasr(DASR(model.net_g, net_p, "official"), path.with_name("official.safetensors"))
    state = {f"net_g.{k}": t for k, t in model.net_g.state_dict().items()}
    state |= {f"net_p.{k}": t for k, t in net_p.state_dict().items()}
    torch.save(state, path.with_name("released.pth"))
    return path


def picture(path: Path, size: tuple[int, int] = (30, 22), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    if mode == "I;16":
        Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(noise).convert(mode).save(path)
    return path


def run(*arguments: object) -> int:
    return main(["inspect", *map(str, arguments), "--device", "cpu"])


def test_json_holds_what_the_network_says_and_can_be_told_to_it(weights, tmp_path, capsys):
    path = picture(tmp_path / "a.png")
    assert run(path, "--weights", weights, "--json", tmp_path / "a.json") == 0
    assert capsys.readouterr().err == ""
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["scheme"] == "unified" and content["network"] == [str(weights)]
    (entry,) = content["pictures"]
    assert (entry["path"], entry["width"], entry["height"]) == (str(path), 30, 22)
    upscaler = Upscaler.from_pretrained(weights, device="cpu")
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None]
    expected = upscaler.predict(pixels.float() / 255)
    assert list(entry["v"]) == list(LAYOUT)
    assert torch.equal(torch.tensor([list(entry["v"].values())]), expected.v)
    assert torch.equal(torch.tensor([entry["mixing_weights"]]), expected.weights)
    readable = describe_prediction(expected.v)[0]
    assert entry["readable"] == json.loads(json.dumps(readable.as_json()))
    loaded = load_degradation(tmp_path / "a.json", upscaler.model.label_scheme)
    assert torch.equal(loaded, expected.v)
    lr = torch.rand(1, 3, 9, 9)
    assert torch.equal(
        upscaler(lr, degradation=loaded), upscaler(lr, degradation=lambda _: expected.v)
    )


def test_text(weights, tmp_path, capsys):
    path = picture(tmp_path / "a.png")
    assert run(path, "--weights", weights, "--json", tmp_path / "a.json") == 0
    text = capsys.readouterr().out
    entry = json.loads((tmp_path / "a.json").read_text())["pictures"][0]
    readable = entry["readable"]
    assert text.startswith(f"{path} (30x22)\n")
    for key in ("blur", "noise", "jpeg"):
        assert (readable[key] or "none") in text
    for step in readable["details"]:
        assert step["what"] in text and step["text"] in text
    assert "second JPEG" in text
    assert " ".join(f"{weight:+.2f}" for weight in entry["mixing_weights"]) in text
    assert run(path, "--weights", weights, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_folders_and_kinds_of_pictures(weights, tmp_path, capsys):
    folder = tmp_path / "in"
    picture(folder / "grey.png", (17, 9), "L")
    picture(folder / "sub" / "deep.png", (40, 25), "I;16")
    picture(folder / "sub" / "clear.webp", (12, 50), "RGBA")
    picture(folder / "sub" / "pal.gif", (8, 8), "P")
    picture(folder / "one.bmp", (1, 1))
    picture(folder / ".hidden" / "no.png")
    (folder / "notes.txt").write_text("no picture")
    assert run(folder, folder / "grey.png", "--weights", weights, "--json", "-") == 0
    content = json.loads(capsys.readouterr().out)
    names = [Path(entry["path"]).relative_to(folder).as_posix() for entry in content["pictures"]]
    assert names == ["grey.png", "one.bmp", "sub/clear.webp", "sub/deep.png", "sub/pal.gif"]
    # 16-bit grey is the same picture as its upper 8 bits, which were doubled.
    deep = np.asarray(Image.open(folder / "sub" / "deep.png")) // 257
    Image.fromarray(deep.astype(np.uint8)).save(tmp_path / "eight.png")
    assert run(tmp_path / "eight.png", "--weights", weights, "--json", "-") == 0
    eight = json.loads(capsys.readouterr().out)["pictures"][0]
    assert eight["v"] == pytest.approx(content["pictures"][3]["v"], abs=1e-6)


def test_large_pictures_are_predicted_in_strips(weights, tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png", (900, 700))
    seen = []
    features = Degradation_Predictor._features_of

    def spy(self, input):
        seen.append(input.shape[2] * input.shape[3])
        return features(self, input)

    monkeypatch.setattr(Degradation_Predictor, "_features_of", spy)
    assert run(path, "--weights", weights) == 0
    assert len(seen) > 1 and max(seen) <= PREDICT_PIXELS


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full device is there on Linux")
def test_a_full_disk_behind_standard_output(tmp_path, weights):
    picture(tmp_path / "a.png")
    command = [sys.executable, "-m", "dasr_ops", "inspect", "a.png", "--json", "a.json"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*command, "--weights", weights],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == "error: standard output: No space left on device\n"
    assert (tmp_path / "a.json").is_file()


def test_bad_pictures_are_told_and_the_others_done(weights, tmp_path, capsys):
    good = picture(tmp_path / "good.png")
    cut = tmp_path / "cut.jpg"
    Image.effect_noise((64, 64), 90).convert("RGB").save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    names = ("text.png", "cut.jpg", "none.png", "empty", "good.png")
    inputs = [tmp_path / name for name in names]
    assert run(*inputs, "--weights", weights, "--json", tmp_path / "all.json") == 1
    output = capsys.readouterr()
    errors = output.err.strip().splitlines()
    assert len(errors) == 4
    for name in names[:4]:
        assert sum(f"error: {tmp_path / name}: " in line for line in errors) == 1
    assert str(good) in output.out
    content = json.loads((tmp_path / "all.json").read_text())
    assert [entry["path"] for entry in content["pictures"]] == [str(good)]
    assert run(tmp_path / "text.png", "--weights", weights, "--json", tmp_path / "no.json") == 1
    assert not (tmp_path / "no.json").exists()


def test_broken_networks_are_told(weights, tmp_path, capsys):
    model = Upscaler.from_pretrained(weights, device="cpu").model
    with torch.no_grad():
        model.net_p.ConvNet[-1].bias[3] = torch.nan
    save_dasr(model, tmp_path / "nan.safetensors")
    path = picture(tmp_path / "a.png")
    assert run(path, "--weights", tmp_path / "nan.safetensors") == 1
    assert capsys.readouterr().err == (
        f"error: {path}: the network predicts infinities or NaN: its weights are broken\n"
    )
    net_g = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2, upscale=2)
    other = DASR(net_g, Degradation_Predictor(nf=4, num_params=7, num_networks=2))
    save_dasr(other, tmp_path / "other.safetensors")
    assert run(path, "--weights", tmp_path / "other.safetensors") == 2
    assert "predicts 7 numbers instead of the 33" in capsys.readouterr().err
    save_dasr(model, tmp_path / "mine.safetensors", metadata={"labels": "mine"})
    assert run(path, "--weights", tmp_path / "mine.safetensors") == 2
    assert "unknown scheme 'mine'; give --scheme" in capsys.readouterr().err


def test_the_scheme_is_that_of_the_weights(weights, tmp_path, capsys):
    path = picture(tmp_path / "a.png")

    def found(*arguments) -> dict:
        assert run(path, "--json", "-", *arguments) == 0
        return json.loads(capsys.readouterr().out)

    official = weights.with_name("official.safetensors")
    released = weights.with_name("released.pth")  # says nothing of itself
    for file, options, scheme in (
        (weights, (), "unified"),
        (official, (), "official"),
        (released, (), "official"),
        (released, ("--scheme", "unified"), "unified"),
        (weights, ("--scheme", "official"), "official"),
    ):
        content = found("--weights", file, *options)
        assert content["scheme"] == scheme
        level = content["pictures"][0]["readable"]["level"]
        assert level == ("severe" if scheme == "official" else None)
    content = found("--weights", official, "--level", "weak")
    assert content["pictures"][0]["readable"]["level"] == "weak"
    assert run(path, "--weights", official) == 0
    assert "read in the ranges of level severe" in capsys.readouterr().out
    assert run(path, "--weights", weights, "--level", "weak") == 2
    assert "--level weak: has no use with scheme unified" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no picture and no folder given"),
        (
            ("a.png", "--weights", "b.png"),
            "--weights b.png: expected small, small-gan, dasr, ",
        ),
        (("a.png", "--weights", "none.safetensors"), "--weights: none.safetensors: "),
        (("a.png", "--json", "no/a.json"), "--json no/a.json: there is no folder no"),
        (("a.png", "--json", "."), "--json .: expected a file"),
        (("a.png", "--json", "there.json"), "--json there.json: exists; see --overwrite"),
        (("a.png", "--plot", "a.tiff"), "--plot a.tiff: expected a name that ends in one of"),
        (("b.png", "--plot", "a.png"), "--plot a.png: exists; see --overwrite"),
        (("a.png", "--scheme", "other"), "other"),
    ],
)
def test_bad_command_lines(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        picture(Path(name))
    Path("there.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert run(*arguments) == 2
    output = capsys.readouterr()
    assert message in output.err and output.out == ""
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_overwrite(weights, tmp_path):
    path, target = picture(tmp_path / "a.png"), tmp_path / "a.json"
    target.write_text("old")
    assert run(path, "--weights", weights, "--json", target, "--overwrite") == 0
    assert json.loads(target.read_text())["format"] == 1


def test_names_without_letters_for_them(weights, tmp_path, capsys, monkeypatch):
    path = picture(tmp_path / "\udcff図.png")
    assert run(path, "--weights", weights, "--json", tmp_path / "a.json") == 0
    assert "\\udcff図.png (30x22)" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["pictures"][0]["path"] == str(path)


def test_a_reader_that_leaves(weights, tmp_path):
    """As in `dasr inspect ... | head -1`."""
    paths = [picture(tmp_path / f"{number}.png", (4, 4)) for number in range(3)]
    arguments = ["inspect", *map(str, paths), "--weights", str(weights), "--device", "cpu"]
    arguments += ["--json", str(tmp_path / "a.json")]
    code = f"import sys; from dasr_ops.cli import main; sys.exit(main({arguments!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()
    assert len(json.loads((tmp_path / "a.json").read_text())["pictures"]) == 3


def test_plot_without_matplotlib(weights, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = picture(tmp_path / "a.png")
    assert run(path, "--weights", weights, "--plot", tmp_path / "p.png") == 2
    assert "--plot: drawing needs matplotlib: pip install" in capsys.readouterr().err
    assert run(path, "--weights", weights) == 0


@pytest.mark.parametrize("suffix", command.PLOT_SUFFIXES)
def test_plot(weights, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    first = picture(tmp_path / "wide $a_1$.png", (400, 40))
    second = picture(tmp_path / "tall.png", (20, 200), "L")
    third = picture(tmp_path / "deep.png", (30, 30), "I;16")
    target = tmp_path / f"figure{suffix}"
    paths = (first, second, third) if suffix == ".png" else (first,)
    assert run(*paths, "--weights", weights, "--plot", target) == 0
    begin = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert target.read_bytes().startswith(begin)
    if suffix == ".png":
        image = np.asarray(Image.open(target).convert("RGB"))
        assert image.shape[1] > 1200 and len(np.unique(image.reshape(-1, 3), axis=0)) > 100


def found(
    level: str, scheme: str = "unified", thumbnail: np.ndarray | None = None
) -> command.Found:
    v = labels(sample(torch.Generator().manual_seed(1), 1, level), scheme)
    if thumbnail is None:
        thumbnail = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    readable = describe_prediction(v, scheme)[0]
    mixing = [0.75, -0.5, 0.25]
    return command.Found(
        Path("x") / f"{level}.png", (90, 60), v[0].tolist(), mixing, readable, thumbnail
    )


@pytest.mark.parametrize("scheme", ["unified", "official"])
def test_the_figure_shows_every_number_once_and_nothing_overlaps(scheme):
    pytest.importorskip("matplotlib")
    import matplotlib.text
    from matplotlib.patches import Rectangle

    entries = [found("severe", scheme), found("weak", scheme)]
    page = _inspect_plot.figure(entries, scheme)
    assert len(page.axes) == len(entries) * 5  # picture, two rounds, last steps, experts
    page.canvas.draw()
    for number, entry in enumerate(entries):
        axes = page.axes[5 * number : 5 * number + 5]
        np.testing.assert_array_equal(axes[0].images[0].get_array(), entry.thumbnail)
        drawn = [
            [bar.get_width() for bar in each.patches if isinstance(bar, Rectangle)]
            for each in axes[1:]
        ]
        assert [len(bars) for bars in drawn] == [13, 13, 7, 3]
        assert drawn[3] == entry.mixing
        # Each entry of v has one bar: values and names in the order of the figure.
        v = dict(zip(LAYOUT, entry.v, strict=True))
        columns = (_inspect_plot._stage(1), _inspect_plot._stage(2), _inspect_plot._FINAL)
        assert sorted(e.key for column in columns for e in column) == sorted(LAYOUT)
        for bars, column in zip(drawn, columns, strict=False):
            assert bars == [v[e.key] for e in column]
    texts = [
        text
        for text in page.findobj(matplotlib.text.Text)
        if text.get_visible() and text.get_text().strip()
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    width, height = page.canvas.get_width_height()
    for index, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        for other, second in boxes[:index]:
            assert not (
                min(box.x1, second.x1) - max(box.x0, second.x0) > 0.5
                and min(box.y1, second.y1) - max(box.y0, second.y0) > 0.5
            ), (text, other)


def test_marks_of_no_effect_are_those_of_the_labels():
    none = dict(zip(LAYOUT, labels(sample(torch.Generator(), 1, "clean"))[0].tolist(), strict=True))
    for column in (_inspect_plot._stage(1), _inspect_plot._stage(2), _inspect_plot._FINAL):
        for entry in column:
            if entry.none is not None:
                assert entry.none == pytest.approx(none[entry.key], abs=1e-6), entry.key


def test_a_figure_holds_a_few_pictures(weights, tmp_path, capsys):
    folder = tmp_path / "in"
    for number in range(command.MOST_IN_PLOT + 1):
        picture(folder / f"{number}.png", (4, 4))
    assert run(folder, "--weights", weights, "--plot", tmp_path / "p.png") == 2
    assert "a figure holds 12 pictures at most, got 13" in capsys.readouterr().err
