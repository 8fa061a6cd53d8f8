"""Explanations in the words of their papers, one sample and one feature at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Logits = Callable[[Tensor], Tensor]


def saliency(f: Logits, x: Tensor, c: int) -> Tensor:
    """Simonyan et al. 2014: the gradient of the class score."""
    leaf = x.clone().requires_grad_()
    f(leaf[None])[0, c].backward()
    assert leaf.grad is not None
    return leaf.grad


def gradient_x_input(f: Logits, x: Tensor, c: int) -> Tensor:
    """Shrikumar et al. 2016."""
    return x * saliency(f, x, c)


def smoothgrad(f: Logits, x: Tensor, c: int, noise: Tensor) -> Tensor:
    """Smilkov et al. 2017: the mean gradient at x + noise_k."""
    maps = [saliency(f, x + some, c) for some in noise]
    return sum(maps[1:], maps[0]) / len(maps)


def integrated_gradients(f: Logits, x: Tensor, c: int, steps: int, baseline: float) -> Tensor:
    """Sundararajan et al. 2017, survey Eq. 11, at the middle of each of `steps` pieces."""
    b = torch.full_like(x, baseline)
    total = torch.zeros_like(x)
    for d in range(steps):
        total += saliency(f, b + (d + 0.5) / steps * (x - b), c)
    return (x - b) * total / steps


def cells(colours: int, high: int, wide: int, side: int) -> np.ndarray:
    """The square cell (D,) of every value of an image, counted along rows; colours share it."""
    across = math.ceil(wide / side)
    return np.array(
        [
            (i // side) * across + j // side
            for _ in range(colours)
            for i in range(high)
            for j in range(wide)
        ]
    )


def lime(
    f: Logits, x: Tensor, c: int, shown: np.ndarray, segment: np.ndarray, width: float
) -> np.ndarray:
    """Ribeiro et al. 2016: weighted ridge regression of scores on masks, baseline 0, ridge 1.

    shown: (n, S) 0/1, segment: (D,) of each feature. Returns the coefficient of every feature.
    The official code fits an intercept and does not penalise it: here it is a column of ones.
    """
    values, weights = [], []
    for mask in shown:
        at = x.clone().flatten()
        for i in range(at.numel()):
            if not mask[segment[i]]:
                at[i] = 0.0
        with torch.no_grad():
            values.append(float(f(at.view_as(x)[None])[0, c]))
        whole = np.ones(shown.shape[1])
        norms = np.linalg.norm(mask) * np.linalg.norm(whole)
        distance = 1 - float(mask @ whole) / norms if norms > 0 else 1.0
        weights.append(math.sqrt(math.exp(-(distance**2) / width**2)))
    w = np.array(weights)
    design = np.hstack([np.ones((len(shown), 1)), shown])
    penalty = np.eye(design.shape[1])
    penalty[0, 0] = 0.0
    left = design.T @ (w[:, None] * design) + penalty
    fitted = np.linalg.solve(left, design.T @ (w * np.array(values)))
    return fitted[1:][segment]


def vargrad(f: Logits, x: Tensor, c: int, noise: Tensor) -> Tensor:
    """Adebayo et al. 2018: the variance of the gradient at x + noise_k, over the k."""
    maps = [saliency(f, x + some, c) for some in noise]
    mean = sum(maps[1:], maps[0]) / len(maps)
    squares = [(one - mean) ** 2 for one in maps]
    return sum(squares[1:], squares[0]) / len(maps)


def expected_gradients(
    f: Logits, x: Tensor, c: int, baselines: Tensor, positions: Tensor
) -> Tensor:
    """Erion et al. 2021, Eq. 3: the mean of (x - x') times the gradient at x' + alpha (x - x')."""
    total = torch.zeros_like(x)
    for base, alpha in zip(baselines, positions.tolist(), strict=True):
        total += (x - base) * saliency(f, base + alpha * (x - base), c)
    return total / len(baselines)


def grad_cam(head: Logits, activation: Tensor, c: int) -> Tensor:
    """Selvaraju et al. 2017, Eq. 1 and 2, before the ReLU: one sample's activation (K, H, W)."""
    leaf = activation.clone().requires_grad_()
    head(leaf[None])[0, c].backward()
    total = torch.zeros(activation.shape[1:], dtype=activation.dtype)
    for k in range(len(activation)):
        total += leaf.grad[k].mean() * activation[k]
    return total


def deep_lift_mlp(net: list, x: Tensor, b: Tensor, c: int) -> Tensor:
    """Shrikumar et al. 2017, the rescale rule on linear layers and activations, one sample.

    net: linear layers and functions in turn. Multipliers go back from the logit, Eq. 3.
    """
    at, base = [x], [b]
    for part in net:
        at.append(part(at[-1]))
        base.append(part(base[-1]))
    multiplier = torch.zeros_like(at[-1])
    multiplier[c] = 1.0
    for place in range(len(net) - 1, -1, -1):
        part = net[place]
        if isinstance(part, torch.nn.Linear):
            multiplier = part.weight.detach().T @ multiplier
            continue
        for i in range(len(multiplier)):
            rise = at[place + 1][i] - base[place + 1][i]
            run = at[place][i] - base[place][i]
            multiplier[i] = multiplier[i] * (rise / run if abs(run) > 1e-9 else 0.0)
    return multiplier * (x - b)
