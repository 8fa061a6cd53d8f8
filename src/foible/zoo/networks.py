"""The architecture of the bundled models: small enough to ship, smooth but for its ReLUs."""

from __future__ import annotations

from torch import nn


def small_cnn(classes: int = 10) -> nn.Sequential:
    """Build the untrained network of the bundled models, for (B, 1, 28, 28) images in [0, 1].

    Two strided convolutions and two linear layers, after the "small" net of Wong and Kolter
    (*Provable defenses against adversarial examples*, 2018) with twice its width. There is no
    pooling by maximum and no batch norm, so that its softplus twin is smooth everywhere.

    >>> import torch
    >>> small_cnn()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
