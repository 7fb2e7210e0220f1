"""``dasr upscale`` on what is more than a picture of 8 bits: deep colour, animations, videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tyro", reason="the commands parse their arguments by tyro")

from dasr_ops.cli import main
from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic, Upscaler, save_dasr
from dasr_ops.models.pictures import Picture, open_animation, read_picture, write_picture


@pytest.fixture(scope="module")
def model() -> DASR:
    torch.manual_seed(0)
    net_g = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2, upscale=2)
    return DASR(net_g, Degradation_Predictor(nf=4, num_networks=2))


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_dasr(model, path)
    return path


def _upscale(*arguments: object) -> int:
    return main(["upscale", *map(str, arguments)])


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bits_and_metadata_go_through(model, weights, tmp_path, suffix):
    pytest.importorskip("imagecodecs", reason="16-bit colour is read and written by it")
    rng = np.random.default_rng(0)
    color = rng.integers(0, 65536, (9, 12, 3), dtype=np.uint16)
    alpha = rng.integers(1, 65536, (9, 12), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x013B] = "An artist"
    source = tmp_path / f"a{suffix}"
    write_picture(Picture(color, alpha, exif.tobytes(), b"a colour profile"), source)
    target = tmp_path / "out" / source.name
    assert _upscale(source, "-o", target.parent, "--weights", weights) == 0
    result = read_picture(target)
    expected = Upscaler(model)(read_picture(source))
    np.testing.assert_array_equal(result.color, expected.color)
    np.testing.assert_array_equal(result.alpha, expected.alpha)
    assert result.icc_profile == b"a colour profile"
    found = Image.Exif()
    found.load(result.exif)
    assert found[0x013B] == "An artist"


def test_animations(weights, tmp_path, capsys):
    frames = [Image.new("RGB", (12, 9), color) for color in ("red", "green", "blue")]
    frames[0].save(
        tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[50, 70, 90], loop=0
    )
    assert _upscale(tmp_path / "a.gif", "-o", tmp_path / "out", "--weights", weights) == 0
    animation = open_animation(tmp_path / "out" / "a.gif")
    assert (animation.num_frames, list(animation.durations)) == (3, [50, 70, 90])
    assert "done: 1, failed: 0; 0.0 megapixels" in capsys.readouterr().err
    assert _upscale(tmp_path / "a.gif", "-o", tmp_path / "a.jpg", "--weights", weights) == 0
    assert "only the first of 3 pictures is read" in capsys.readouterr().err


def test_animations_too_large_are_said_before_the_work(weights, tmp_path, capsys):
    frames = [Image.new("RGB", (9000, 1), color) for color in ("red", "green")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    arguments = [tmp_path / "a.webp", "-o", tmp_path / "out", "--weights", weights]
    for flags in (["--dry-run"], []):
        assert _upscale(*arguments, *flags) == 1
        assert "18000x2 pixels do not fit into WEBP" in capsys.readouterr().err


def test_quality_of_animations(weights, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    frames = [Image.fromarray(frame) for frame in noise]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    sizes = []
    for quality in (5, 95):
        target = tmp_path / f"{quality}.webp"
        arguments = ["-o", target, "--weights", weights, "--quality", quality]
        assert _upscale(tmp_path / "a.png", *arguments) == 0
        sizes.append(target.stat().st_size)
    assert sizes[0] < 0.5 * sizes[1]


def test_videos(weights, tmp_path, capsys):
    av = pytest.importorskip("av", reason="the extra 'video' is not installed")
    source, target = tmp_path / "in" / "clip.mp4", tmp_path / "out" / "clip.mp4"
    source.parent.mkdir()
    with av.open(str(source), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for level in range(7):
            picture = np.full((24, 32, 3), 30 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (source.parent / "broken.mp4").write_text("no video")
    arguments = [source.parent, "-o", target.parent, "--weights", weights]
    assert _upscale(*arguments, "--dry-run") == 1
    printed = capsys.readouterr()
    assert printed.out == f"{source} (32x24) -> {target} (64x48)\n"
    assert f"error: {source.parent / 'broken.mp4'}: " in printed.err
    assert _upscale(*arguments, "--codec", "no-such-codec") == 1
    assert "no-such-codec" in capsys.readouterr().err
    assert _upscale(*arguments, "--crf", -5) == 2
    assert not target.exists()
    assert _upscale(*arguments, "--overwrite") == 1
    assert "done: 1, failed: 1" in capsys.readouterr().err
    with av.open(str(target)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 7
    assert (frames[0].width, frames[0].height) == (64, 48)
    assert [path.name for path in target.parent.iterdir()] == ["clip.mp4"]
