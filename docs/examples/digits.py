"""Dynamic convolution in one page: classify handwritten digits, in seconds on one CPU core.

Run it with ``python docs/examples/digits.py`` (it needs scikit-learn for the 1797 images of 8x8
pixels). It trains two networks of the same body and prints the accuracy of both on images they
have not seen: one with `torch.nn.Conv2d`, one whose convolutions mix four expert kernels for each
image, so that it holds more parameters but convolves each image no more often. The images are easy
and the two are about equally good (within 0.02 over seeds): the point is how little code changes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from dasr_ops import DynamicConv2d
from dasr_ops.routing import AttentionRouter, anneal_temperature

NUM_EXPERTS = 4


class RoutedConv2d(nn.Module):
    """A convolution that looks at its input and mixes its kernel from experts accordingly.

    That is all there is to it: a router maps the features [B, I, H, W] to one weight for each
    expert, [B, K], and `DynamicConv2d` convolves image b with the sum of its K kernels under the
    weights of row b. Another router gives another published method, see `dasr_ops.routing`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.router = AttentionRouter(in_channels, NUM_EXPERTS, hidden_features=16)
        self.conv = DynamicConv2d(
            in_channels, out_channels, 3, stride, padding=1, num_experts=NUM_EXPERTS
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, I, H, W] to [B, O, H', W']."""
        return self.conv(features, self.router(features))


def make_network(dynamic: bool) -> nn.Sequential:
    """Build the body [B, 1, 8, 8] -> [B, 10]; ``dynamic`` chooses two of its layers and no more."""

    def conv(in_channels: int, out_channels: int, stride: int) -> nn.Module:
        if dynamic:
            return RoutedConv2d(in_channels, out_channels, stride)
        return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)

    return nn.Sequential(
        # The first layer stays static: from one channel a router sees only the mean brightness.
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 16, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        conv(16, 16, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 2 * 2, 10),
    )


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, then held-out images and labels."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # [1797, 1, 8, 8]
    labels = torch.tensor(digits.target)
    indices = torch.arange(len(labels)).numpy()
    train, test = train_test_split(indices, test_size=0.25, random_state=0, stratify=labels)
    return images[train], labels[train], images[test], labels[test]


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train as any network; the one addition is the temperature of the routers."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for epoch in range(epochs):
        # Hot routers mix all experts alike, so that each of them learns; then they specialise.
        anneal_temperature(network, 2 * epoch / epochs)
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are classified correctly."""
    network.eval()
    return (network(images).argmax(1) == labels).double().mean().item()


def main(epochs: int = 10, seed: int = 0) -> dict[str, float]:
    """Train both networks, print what they reach, and return the held-out accuracies."""
    train_images, train_labels, test_images, test_labels = load_data()
    result: dict[str, float] = {}
    for name in ("static", "dynamic"):
        torch.manual_seed(seed)
        network = make_network(dynamic=name == "dynamic")
        train(network, train_images, train_labels, epochs)
        result[name] = accuracy(network, test_images, test_labels)
        size = sum(parameter.numel() for parameter in network.parameters())
        print(f"{name:7}  {size:5} parameters  held-out accuracy {result[name]:.3f}")
    return result


if __name__ == "__main__":
    main()
