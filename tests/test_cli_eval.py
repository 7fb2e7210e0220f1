"""`dasr eval`: pairs, restored pictures, photographs; tables, files and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage import metrics as their_metrics

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.bench.peers import RRDBNet, SRVGGNetCompact
from dasr_ops.cli import main
from dasr_ops.models import (
    DASR,
    Degradation_Predictor,
    MSRResNetDynamic,
    SRResNet,
    load_dasr,
    save_dasr,
    shipped,
)
from dasr_ops.train.degradations import LAYOUT, apply, labels, sample
from dasr_ops.train.evaluate import METHODS, VectorErrors, mix_constants
from dasr_ops.train.metrics import psnr_y
from dasr_ops.train.watch.samples import sample_seed

from .eval_tools import pairs, picture, read, run, shrunk
from .ncnn_files import write_compact, write_rrdb_net

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    for scale in (2, 4):
        net_g = MSRResNetDynamic(num_feat=8, num_block=1, num_models=2, upscale=scale)
        model = DASR(net_g, Degradation_Predictor(nf=8, num_networks=2))
        with torch.no_grad():  # so that it matters what v is
            model.net_p.MappingNet[0].weight.mul_(3)
            model.net_p.MappingNet[1].weight.mul_(3)
        save_dasr(model, folder / f"x{scale}.safetensors")
        static = SRResNet(num_feat=8, num_block=1, upscale=scale)
        torch.save({"params": static.state_dict()}, folder / f"static{scale}.pth")
    return folder


def luma(path, size=None, border=4):
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB")) / 255
    height, width = size or rgb.shape[:2]
    y = rgb[:height, :width] @ np.array([65.481, 128.553, 24.966]) + 16
    return y[border : height - border, border : width - border]


def test_restored_pictures_are_scored_as_they_are(tmp_path, capsys):
    psnr, ssim = [], []
    for name, size in (("a", (64, 52)), ("deep/b", (51, 63))):
        gt = picture(tmp_path / "gt" / f"{name}.png", size, seed=len(name))
        sr = tmp_path / "mine" / f"{name}_x4.bmp"
        sr.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(gt) as image:  # the second was cut to a multiple of 4
            cut = (size[0] // 4 * 4, size[1] // 4 * 4)
            blurred = image.resize((20, 20)).resize(size).crop((0, 0, *cut))
        blurred.save(sr)
        a, b = luma(sr, border=3), luma(gt, (cut[1], cut[0]), 3)
        psnr.append(their_metrics.peak_signal_noise_ratio(b, a, data_range=255))
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        ssim.append(their_metrics.structural_similarity(a, b, data_range=255, **options))
    output = tmp_path / "new" / "table.v1"
    arguments = ["--sr", tmp_path / "mine", "--gt", tmp_path / "gt", "--suffix", "_x4"]
    assert run(*arguments, "--border", 3, "-o", output) == 0
    out = capsys.readouterr().out
    row = f"| mine | {np.mean(psnr):.2f} / {np.mean(ssim):.4f} |"
    assert out.startswith("PSNR-Y [dB] / SSIM-Y, means over 2 pictures, border 3\n\n")
    assert row in out
    text = (tmp_path / "new" / "table.v1.md").read_text()
    assert text == f"| | pairs |\n| --- | --- |\n{row}\n"
    content, rows = read(output)
    assert [r["picture"] for r in rows] == ["a", "deep/b"]
    assert [float(r["psnr"]) for r in rows] == pytest.approx(psnr, rel=1e-6)
    assert [float(r["ssim"]) for r in rows] == pytest.approx(ssim, rel=1e-6)
    assert content["means"]["mine"]["pairs"]["ssim"] == pytest.approx(np.mean(ssim), abs=1e-9)
    assert content["means"]["mine"]["pairs"]["psnr"] == pytest.approx(np.mean(psnr))
    assert content["failed"] == {} and content["vector"] is None


def test_equal_pictures(tmp_path, capsys):
    picture(tmp_path / "gt" / "a.png")
    assert run("--sr", tmp_path / "gt", "--gt", tmp_path / "gt", "-o", tmp_path / "t.json") == 0
    assert "| gt | inf / 1.0000 |" in capsys.readouterr().out
    content, rows = read(tmp_path / "t")
    assert rows[0]["psnr"] == "inf" and content["means"]["gt"]["pairs"]["psnr"] == "inf"


@pytest.mark.parametrize("scale", [2, 4])
def test_pairs_are_restored(tmp_path, networks, capsys, scale):
    pairs(tmp_path, scale, "x")
    wide = picture(tmp_path / "gt" / "wide.png", (200, 64))  # more than a tile
    shrunk(wide, tmp_path / "lr" / "widex.png", scale)
    weights = networks / f"x{scale}.safetensors"
    static = networks / f"static{scale}.pth"
    arguments = ["--lr", tmp_path / "lr", "--gt", tmp_path / "gt", "--suffix", "x"]
    arguments += ["--weights", weights, "--static", static, "--device", "cpu"]
    assert run(*arguments, "-o", tmp_path / "t") == 0
    content, rows = read(tmp_path / "t")
    assert list(content["means"]) == ["bicubic", "SRResNet, same body", "DASR"]
    assert len(rows) == 9 and content["settings"]["border"] == scale
    assert set(content["settings"]["networks"]) == {"dasr", "static"}
    assert content["settings"]["machine"]["threads"] == 1
    model = load_dasr(weights).eval()
    assert 4 * model.receptive_field_radius < 50  # the least tile, and the LR width of "wide"
    for row in rows:
        if row["method"] == "SRResNet, same body":
            continue
        with Image.open(tmp_path / "lr" / f"{row['picture']}x.png") as image:
            lr = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        with Image.open(tmp_path / "gt" / f"{row['picture']}.png") as image:
            gt = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        gt = gt[:, :, : lr.shape[2] * scale, : lr.shape[3] * scale]
        if row["method"] == "DASR":
            with torch.no_grad():
                sr = model(lr)
        else:
            sr = F.interpolate(lr, scale_factor=scale, mode="bicubic", antialias=True)
        # Pixels on the edge between two 8-bit values may fall to either side.
        expected = psnr_y(sr.clamp(0, 1), gt, scale).item()
        assert float(row["psnr"]) == pytest.approx(expected, abs=5e-3)
    # Pairs in one folder are the same, and tiles change nothing.
    whole = [float(r["psnr"]) for r in rows if r["method"] == "DASR"]
    tiled = [tmp_path, "--suffix", "x", "--weights", weights, "--tile", 1, "--methods", "dasr"]
    assert run(*tiled, "-o", tmp_path / "u") == 0
    assert [float(r["psnr"]) for r in read(tmp_path / "u")[1]] == pytest.approx(whole, abs=5e-3)
    assert "| DASR |" in capsys.readouterr().out


def test_photographs_are_degraded_by_name(tmp_path, networks):
    picture(tmp_path / "in" / "x" / "a.png", (101, 99))
    weights = networks / "x4.safetensors"
    arguments = ["--weights", weights, "--methods", "dasr", "true-v", "mean-v", "bicubic"]
    arguments += ["--levels", "clean", "severe", tmp_path / "in"]  # the folder behind the levels
    assert run(*arguments, "--draws", 2, "--seed", 5, "-o", tmp_path / "t") == 0
    _, rows = read(tmp_path / "t")
    assert len(rows) == 4 * (1 + 2)
    with Image.open(tmp_path / "in" / "x" / "a.png") as image:
        gt = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None, :, :96, :100].float() / 255
    model = load_dasr(weights).eval()
    found = {(r["method"], r["level"], r["draw"]): float(r["psnr"]) for r in rows}
    for draw in (0, 1):
        seed = sample_seed("x/a", "severe", draw, 5)
        params = sample(torch.Generator().manual_seed(seed), 1, "severe")
        lr = apply(params, gt)
        mean = mix_constants({"clean": 1, "severe": 1})[1][None]
        for name, v in (("DASR", None), ("DASR, true v", labels(params)), ("DASR, mean v", mean)):
            with torch.no_grad():
                expected = psnr_y(model(lr, degradation=v).clamp(0, 1), gt).item()
            assert found[name, "severe", str(draw)] == pytest.approx(expected, abs=5e-3)
    assert len({found[n, "severe", "0"] for n in ("DASR", "DASR, true v", "DASR, mean v")}) == 3
    assert run(*arguments, "--draws", 2, "--seed", 5, "-o", tmp_path / "u") == 0
    assert [r["psnr"] for r in read(tmp_path / "u")[1]] == [r["psnr"] for r in rows]


def test_a_made_set_with_vectors(tmp_path, networks, capsys):
    truth = {}
    for i, name in enumerate(("a", "b", "c")):
        gt = picture(tmp_path / "gt" / f"{name}.png", seed=i)
        for level in ("severe", "weak"):
            shrunk(gt, tmp_path / level / "lr" / f"{name}.png")
            v = sample(torch.Generator().manual_seed(i), 1, level)
            truth[level, name] = labels(v)[0]
            file = tmp_path / level / "lr" / f"{name}.json"
            file.write_text(json.dumps({"v": truth[level, name].tolist()}))
    weights = networks / "x4.safetensors"
    arguments = [tmp_path, "--weights", weights, "--vector", "--mix", "weak=1", "severe=3"]
    assert run(*arguments, "--methods", "dasr", "-o", tmp_path / "t") == 0
    out = capsys.readouterr().out
    assert "| | weak | severe |" in out and "entries of v" in out
    model = load_dasr(weights).eval()
    predicted = {}
    for level, name in truth:
        with Image.open(tmp_path / level / "lr" / f"{name}.png") as image:
            lr = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            predicted[level, name] = model.net_p(lr).v[0]
    vector = read(tmp_path / "t")[0]["vector"]
    assert vector["entries"] == list(LAYOUT) and vector["pictures"] == 6
    true = np.stack([v.numpy() for v in truth.values()])
    ours = np.stack([predicted[key].numpy() for key in truth])
    np.testing.assert_allclose(vector["all"]["P"], np.abs(ours - true).mean(0), atol=1e-6)
    best = np.abs(np.median(true, axis=0) - true).mean(0)
    np.testing.assert_allclose(vector["all"]["best constant"], best, atol=1e-6)
    drawn = labels(sample(torch.Generator().manual_seed(0), 4096, {"weak": 1.0, "severe": 3.0}))
    mean = np.abs(drawn.double().numpy().mean(0) - true).mean(0)
    np.testing.assert_allclose(vector["all"]["mean of the mix"], mean, atol=1e-6)
    for other in ("median of the mix", "mean of the mix"):
        assert (np.array(vector["all"][other]) >= best - 1e-6).all()
    weak = [key for key in truth if key[0] == "weak"]
    errors = np.stack([np.abs(predicted[k].numpy() - truth[k].numpy()) for k in weak]).mean(0)
    np.testing.assert_allclose(vector["levels"]["weak"]["P"], errors, atol=1e-6)
    text = (tmp_path / "t.md").read_text()
    row = [f"{vector['all'][n][26]:.4f}" for n in vector["all"]]
    assert f"| 26 jpeg1_quality | {' | '.join(row)} |" in text
    # One without its vector fails, the others go on.
    (tmp_path / "weak" / "lr" / "b.json").unlink()
    assert run(*arguments, "--methods", "true-v", "-o", tmp_path / "u") == 1
    assert "error: b (weak): the true degradation vector is not known" in capsys.readouterr().err
    assert len(read(tmp_path / "u")[1]) == 5
    for file in tmp_path.rglob("lr/*.json"):
        file.unlink()
    assert run(*arguments) == 2


def test_bad_pictures_are_one_line_each(tmp_path, networks, capsys):
    pairs(tmp_path)
    for name, size in (("small", (16, 64)), ("broken", (64, 64)), ("odd", (64, 64))):
        shrunk(picture(tmp_path / "gt" / f"{name}.png", size), tmp_path / "lr" / f"{name}.png")
    (tmp_path / "lr" / "broken.png").write_bytes(b"no picture")
    picture(tmp_path / "gt" / "odd.png", (68, 64))
    arguments = ["--lr", tmp_path / "lr", "--gt", tmp_path / "gt", "--methods", "bicubic"]
    assert run(*arguments, "-o", tmp_path / "t") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3
    assert "lr/broken.png: not a picture that can be read" in lines[0]
    assert "lr/odd.png: 16x16 magnified by 4 is 64x64, which does not fit" in lines[1]
    assert lines[2] == "error: small: 16x64 is below 19 pixels a side"
    content, rows = read(tmp_path / "t")
    assert [row["picture"] for row in rows] == ["a", "deep/b"] and len(content["failed"]) == 3
    # Restored pictures of another size.
    shutil.copytree(tmp_path / "gt", tmp_path / "sr")
    picture(tmp_path / "sr" / "a.png", (60, 52))
    assert run("--sr", tmp_path / "sr", "--gt", tmp_path / "gt") == 1
    err = capsys.readouterr().err
    assert "error: a, sr: 60x52 does not fit its ground truth of 64x52" in err
    # All of them bad.
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"x")
    assert run("--sr", tmp_path / "bad", "--gt", tmp_path / "bad", "-o", tmp_path / "v") == 1
    assert "error: no picture could be scored" in capsys.readouterr().err
    assert not list(tmp_path.glob("v.*"))


def test_pairs_with_restored_pictures_and_a_limit(tmp_path, networks, capsys):
    pairs(tmp_path)
    for folder in ("one/sr", "two/sr"):
        shutil.copytree(tmp_path / "gt", tmp_path / folder)
    arguments = ["--lr", tmp_path / "lr", "--gt", tmp_path / "gt", "--methods", "bicubic"]
    arguments += ["--sr", tmp_path / "one/sr", tmp_path / "two/sr", "--limit", 1]
    # Their second picture is one column wider than LR x 4, and so is not looked at.
    assert run(*arguments, "-o", tmp_path / "t") == 0
    content, rows = read(tmp_path / "t")
    names = [str(tmp_path / "one/sr"), str(tmp_path / "two/sr"), "bicubic"]
    assert list(content["means"]) == names and [row["picture"] for row in rows] == ["a"] * 3


def test_folders_that_are_called_like_methods(tmp_path, capsys):
    pairs(tmp_path)
    for folder in ("out/bicubic", "x/sr"):
        shutil.copytree(tmp_path / "gt", tmp_path / folder)
    arguments = ["--lr", tmp_path / "lr", "--gt", tmp_path / "gt", "--methods", "bicubic"]
    arguments += ["--limit", 1]
    assert run(*arguments, "--sr", tmp_path / "out/bicubic", "-o", tmp_path / "t") == 0
    assert list(read(tmp_path / "t")[0]["means"]) == [str(tmp_path / "out/bicubic"), "bicubic"]
    assert run(*arguments, "--sr", tmp_path / "x/sr", tmp_path / "x/sr") == 2
    assert "--sr: expected different folders" in capsys.readouterr().err


def test_the_vector_means_what_the_weights_say(tmp_path, networks, capsys):
    official = load_dasr(networks / "x4.safetensors")
    official.label_scheme = "official"
    save_dasr(official, tmp_path / "official.safetensors")
    weights = ["--weights", tmp_path / "official.safetensors"]
    picture(tmp_path / "photos" / "a.png", (96, 96))
    arguments = [tmp_path / "photos", "--levels", "weak", "--draws", 1, "--methods", "true-v"]
    assert run(*arguments, *weights, "-o", tmp_path / "t") == 0
    with Image.open(tmp_path / "photos" / "a.png") as image:
        gt = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    generator = torch.Generator().manual_seed(sample_seed("a", "weak"))
    params = sample(generator, 1, "weak")
    with torch.no_grad():
        sr = official.eval()(apply(params, gt), degradation=labels(params, "official"))
    expected = psnr_y(sr.clamp(0, 1), gt).item()
    assert float(read(tmp_path / "t")[1][0]["psnr"]) == pytest.approx(expected, abs=5e-3)
    capsys.readouterr()
    assert run(*arguments, *weights, "--labels", "unified") == 2
    assert "--labels unified: those of the weights are official" in capsys.readouterr().err
    official.label_scheme = "mine"
    save_dasr(official, tmp_path / "official.safetensors")
    assert run(*arguments, *weights) == 2
    assert "expected labels unified or official, got mine" in capsys.readouterr().err
    assert run(*arguments[:-1], "dasr", *weights) == 0  # P says it itself

    # What `dasr degrade` made says its scheme too.
    gt = picture(tmp_path / "set" / "gt" / "a.png")
    shrunk(gt, tmp_path / "set" / "weak" / "lr" / "a.png")
    file = tmp_path / "set" / "weak" / "lr" / "a.json"
    file.write_text(json.dumps({"v": labels(params)[0].tolist(), "scheme": "official"}))
    arguments = [tmp_path / "set", "--weights", networks / "x4.safetensors", "--methods"]
    assert run(*arguments, "dasr") == 0
    assert run(*arguments, "true-v") == 1
    said = "a.json: expected labels of the scheme unified, got official"
    assert said in capsys.readouterr().err


def test_several_networks_side_by_side(tmp_path, networks, monkeypatch, capsys):
    pairs(tmp_path / "set")
    other = load_dasr(networks / "x4.safetensors")
    with torch.no_grad():
        other.net_g.conv_last.bias.add_(0.1)
    for folder in ("a", "shipped"):
        (tmp_path / folder).mkdir()
    save_dasr(other, tmp_path / "a" / "other.safetensors")
    save_dasr(other, tmp_path / "g.pth", tmp_path / "p.pth")
    first = networks / "x4.safetensors"
    several = [first, tmp_path / "g.pth", tmp_path / "p.pth", tmp_path / "a/other.safetensors"]
    arguments = ["--lr", tmp_path / "set/lr", "--gt", tmp_path / "set/gt"]
    torch.save(other.state_dict(), tmp_path / "both.pth")
    assert run(*arguments, "--weights", tmp_path / "both.pth", "--methods", "dasr") == 0
    assert run(*arguments, "--weights", *several, "-o", tmp_path / "t") == 0
    content, _ = read(tmp_path / "t")
    assert list(content["means"]) == ["bicubic", "DASR x4", "DASR g", "DASR other"]
    digests = content["settings"]["networks"]
    assert list(digests) == ["dasr x4", "dasr g", "dasr other"]
    assert digests["dasr g"] == digests["dasr other"] != digests["dasr x4"]
    assert (
        content["means"]["DASR g"]["pairs"]["psnr"]
        == (content["means"]["DASR other"]["pairs"]["psnr"])
    )
    for name, weights in (("DASR x4", [first]), ("DASR g", several[1:3])):
        assert run(*arguments, "--weights", *weights, "-o", tmp_path / "one") == 0
        one = read(tmp_path / "one")[0]["means"]["DASR"]["pairs"]
        assert one["psnr"] == content["means"][name]["pairs"]["psnr"]

    # A folder behind the weights, of a name that weights may have.
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    save_dasr(other, shipped.FOLDER / "small.safetensors")
    monkeypatch.chdir(tmp_path)
    Path("set").rename("dasr")
    capsys.readouterr()
    assert run("--weights", "small", first, "dasr") == 0
    assert "| DASR small | " in capsys.readouterr().out
    assert run("dasr", "--weights", "small", first, "dasr") == 2
    assert "dasr: this build comes without these weights" in capsys.readouterr().err
    other.label_scheme = "official"
    save_dasr(other, "official.safetensors")
    methods = ["--methods", "dasr", "true-v"]
    assert run("dasr", *methods, "--weights", first, "official.safetensors") == 2
    assert "expected the same labels, got official and unified" in capsys.readouterr().err


def test_networks_of_others(tmp_path, capsys):
    torch.manual_seed(2)
    made = {"x4plus": RRDBNet(8, 1, 4), "animevideov3": SRVGGNetCompact(6, 2, 4)}
    write_rrdb_net(made["x4plus"], tmp_path, "realesrgan-x4plus", half=False)
    write_compact(made["animevideov3"], tmp_path, "realesr-animevideov3-x4", half=False)
    pairs(tmp_path / "set")
    out = tmp_path / "out"
    methods = ["--methods", "bicubic", *made, "--peers", tmp_path, "--time"]
    assert run(tmp_path / "set", *methods, "-o", out) == 0
    table = capsys.readouterr().out
    assert "| | pairs | seconds |" in table
    content, _ = read(out)
    for key, network in made.items():
        label = METHODS[key]
        assert f"| {label} | " in table
        scores = []
        for name in ("a", "deep/b"):
            with Image.open(tmp_path / "set" / "lr" / f"{name}.png") as image:
                lr = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
            with Image.open(tmp_path / "set" / "gt" / f"{name}.png") as image:
                gt = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
            with torch.no_grad():
                sr = network.eval()(lr.permute(2, 0, 1)[None].float() / 255)
            gt = gt.permute(2, 0, 1)[None, :, : sr.shape[2], : sr.shape[3]]
            scores.append(psnr_y(sr.clamp(0, 1), gt.float() / 255).item())
        found = content["means"][label]["pairs"]["psnr"]
        assert found == pytest.approx(sum(scores) / 2, abs=0.02)  # of a rounding
    (tmp_path / "realesrgan-x4plus.bin").write_bytes(b"")
    assert run(tmp_path / "set", "--methods", "x4plus", "--peers", tmp_path) == 2
    assert "error: --methods x4plus: " in capsys.readouterr().err
    assert run(tmp_path / "set", "--methods", "x4plus", "--peers", tmp_path / "no") == 2
    assert "--methods x4plus: the weights of realesrgan-x4plus are miss" in capsys.readouterr().err


def test_usage_errors(tmp_path, networks, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs(tmp_path / "set")
    picture(tmp_path / "set" / "photos" / "p.png")
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    w = ["--weights", str(networks / "x4.safetensors")]
    for arguments, expected in (
        ([], "expected a folder of photographs"),
        (["none"], "expected a folder or a picture, got none"),
        (["set", "set"], "expected one folder"),
        (["set", "--gt", "set/gt"], "take the place of a folder"),
        (["--gt", "set/gt"], "--gt: expected --lr or --sr"),
        (["--lr", "set/lr"], "or --gt with"),
        (["--sr", "set/gt", "--gt", "set/gt", "--methods", "dasr"], "expected --lr or a folder"),
        (["--lr", "set/lr", "--gt", "set/photos"], "without partner in set/photos: set/lr/a.png"),
        (["--sr", "set/lr", "--gt", "set/photos"], "without partner in set/lr: set/photos/p.png"),
        (["set", "--peers", "set"], "--peers: expected x4plus or animevideov3 among --methods"),
        (["set", "--methods", "nearest"], "names among bicubic static dasr true-v mean-v"),
        (["set", "--methods", "static"], "expected --static with its weights"),
        (["set/photos", "--levels", "fog"], "levels: expected names among"),
        (["set/photos", "--draws", "0"], "--draws: expected 1 or more"),
        (["set/photos", "--mix", "weak=x"], "--mix weak=x: expected LEVEL=WEIGHT"),
        (["set/photos", "--mix", "weak=0"], "--mix: expected weights that are not all 0"),
        (["set/photos", "--scale", "2", *w], "--scale 2: the network magnifies by 4"),
        (["set", "--static", str(networks / "static2.pth"), *w], "one magnification, got [2, 4]"),
        (
            ["set", "--weights", "set"],
            "--weights: expected names or files (.safetensors or .pth) of weights, got set",
        ),
        (["set", "--weights", "none.pth"], "--weights: none.pth: no such file"),
        (["set", "--weights", "g.pth", "p.pth"], "--weights: g.pth: no such file"),
        (["set", *w, "p.pth"], "--weights p.pth: expected the .pth files of G and P after each"),
        (["set", *w, w[1], "--vector"], "--vector: expected the --weights of one network, got 2"),
        (["set", "--static", "none.pth"], "--static: "),
        (["set", "--device", "abacus"], "--device abacus: "),
        (["set", "--vector", *w], "expected NAME.json beside the LR pictures"),
        (["set", "--output", "file/x"], "--output file/x: "),
    ):
        assert run(*arguments) == 2, arguments
        assert expected in capsys.readouterr().err, arguments
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_distance_and_a_full_disk(tmp_path, capsys, monkeypatch):
    from dasr_ops.train import perceptual_distance
    from dasr_ops.train.evaluate import report

    picture(tmp_path / "gt" / "a.png")
    arguments = ["--sr", tmp_path / "gt", "--gt", tmp_path / "gt"]
    monkeypatch.setattr(perceptual_distance, "PACKAGE", "no_such_package_anywhere")
    assert run(*arguments, "--perceptual") == 2
    assert "--perceptual: the perceptual distance needs the weights" in capsys.readouterr().err

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "atomic_path", full)
    assert run(*arguments, "-o", tmp_path / "t") == 1
    captured = capsys.readouterr()
    assert "t cannot be written: No space left on device" in captured.err
    assert "| gt | inf / 1.0000 |" in captured.out


def test_the_perceptual_distance_is_a_metric_too(tmp_path, capsys, monkeypatch):
    from dasr_ops.train.watch import scores

    class Distance(torch.nn.Module):
        def features(self, picture):
            return [picture]

        def between(self, pred, target):
            return (pred[0] - target[0]).abs().mean().view(1)

    monkeypatch.setattr(scores, "PerceptualDistance", Distance)
    picture(tmp_path / "gt" / "a.png")
    shutil.copytree(tmp_path / "gt", tmp_path / "sr")
    assert run("--sr", tmp_path / "sr", "--gt", tmp_path / "gt", "--perceptual") == 0
    out = capsys.readouterr().out
    assert "PSNR-Y [dB] / SSIM-Y / ST-LPIPS" in out and "| sr | inf / 1.0000 / 0.0000 |" in out


def test_vector_errors_by_hand():
    errors = VectorErrors(torch.zeros(33), torch.ones(33))
    errors.add("a", torch.full((1, 33), 0.5), torch.full((1, 33), 0.25))
    errors.add("b", torch.full((1, 33), 0.5), torch.full((1, 33), 0.75))
    errors.add("b", torch.full((1, 33), 0.5), torch.full((1, 33), 0.75))
    found = [value[7] for value in errors.result().values()]
    assert found == pytest.approx([0.25, 1.75 / 3, 1.25 / 3, 0.5 / 3])
    assert errors.result("a")["best constant"] == [0.0] * 33
    assert "better than any constant for 0 of 33" in errors.summary()
    assert errors.explained() == pytest.approx([1 - 0.0625 / (0.5 / 9)] * 33)
    assert np.isnan(errors.explained("a")).all()
    assert errors.markdown().splitlines()[-1].endswith(" | -12 % |")
    errors.add("c", torch.full((1, 33), 0.25), torch.full((1, 33), 0.25))
    assert errors.explained("c") == pytest.approx([float("nan")] * 33, nan_ok=True)
    assert errors.explained() == pytest.approx([1 - 3 / 4] * 33)
    with pytest.raises(ValueError, match="level: expected one with known vectors"):
        errors.result("d")
    with pytest.raises(ValueError, match=r"mean: expected \[33\]"):
        VectorErrors(torch.zeros(33), torch.zeros(32))


def test_help(capsys):
    assert main(["eval", "--help"]) == 0
    assert "dasr eval --sr SR --gt GT" in " ".join(capsys.readouterr().out.split())
    assert main(["--help"]) == 0
    assert "eval     score networks or pictures" in capsys.readouterr().out
