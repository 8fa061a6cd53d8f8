"""The architecture of the bundled models: small enough to ship, smooth but for its ReLUs."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def small_cnn(classes: int = 10, width: int = 32) -> nn.Sequential:
    """Build the untrained network of the bundled models, for (B, 1, 28, 28) images in [0, 1].

    Two strided convolutions and two linear layers, after the "small" net of Wong and Kolter
    (*Provable defenses against adversarial examples*, 2018) with twice its width. There is no
    pooling by maximum and no batch norm, so that its softplus twin is smooth everywhere.
    width: channels of the first convolution, 32 in the bundled pair and 16 in the weak defences.

    >>> import torch
    >>> small_cnn()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 7 * 7, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, classes),
    )


def pooled_cnn() -> nn.Sequential:
    """Build three convolutions of 3 x 3 with pooling by maximum, and one hidden layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 49, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def mlp() -> nn.Sequential:
    """Build a net of three linear layers with GELU between them."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 512),
        nn.GELU(),
        nn.Linear(512, 256),
        nn.GELU(),
        nn.Linear(256, 10),
    )


def norm_cnn() -> nn.Sequential:
    """Build strided convolutions with batch norm, and a mean over positions."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


# The architectures of the benchmarks' further models (recipes/train_panel.py).
PANEL: dict[str, Callable[[], nn.Sequential]] = {
    "trades_pooled": pooled_cnn,
    "mlp_fast": mlp,
    "norm_pgd": norm_cnn,
    "mnist_pgd": small_cnn,
}


def autoencoder(width: int = 16, codes: int = 4) -> nn.Sequential:
    """Build the untrained autoencoder: (B, 1, 28, 28) in [0, 1] to the same shape in (0, 1).

    A quarter as many numbers as pixels pass through its middle, `codes` maps of 7 x 7: enough for
    a garment, too few for noise. Strided convolutions as in `small_cnn`; the sigmoid keeps it in
    the box.

    >>> import torch
    >>> autoencoder()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 1, 28, 28])
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, codes, 3, padding=1),
        nn.Conv2d(codes, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        nn.Sigmoid(),
    )
