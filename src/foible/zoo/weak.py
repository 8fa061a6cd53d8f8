"""Weak defences: wrappers that hide a gradient and leave a model as easy to fool as before.

Each is a published way to look robust (Athalye et al. 2018 name them: shattered, stochastic and
vanishing gradients). They are here to be seen through: plain PGD reports a high accuracy on every
one of them, and each says which attack brings it down. Weights, classes and input shape are the
wrapped net's; random ones draw from torch's global generator.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.errors import InputError

__all__ = [
    "DetachedSoftmax",
    "MinMaxLogits",
    "NoisyActivations",
    "Quantised",
    "RandomResizePad",
    "Temperature",
]


class Quantise(nn.Module):
    """Round inputs to `levels` values in [0, 1]: the gradient is zero everywhere."""

    def __init__(self, levels: int = 2) -> None:
        super().__init__()
        if levels < 2:
            raise InputError(f"levels={levels}: rounding needs two levels at least")
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Return the nearest level of every value."""
        return torch.round(x * (self.levels - 1)) / (self.levels - 1)


class Quantised(nn.Module):
    """A net behind a quantiser of its input (bit depth reduction, Xu et al. 2018; Guo et al. 2018).

    levels: 2 is one bit. The rounding has no gradient, so that PGD stays where it starts. Broken by
    BPDA with the identity: `foible.models.bpda(Quantised(net), at="defence")`. Only values within
    eps of a threshold can change level, so that at a small eps some of the protection is real.

    >>> Quantised(nn.Flatten())(torch.tensor([[0.2, 0.7]])).tolist()
    [[0.0, 1.0]]
    """

    def __init__(self, net: nn.Module, levels: int = 2) -> None:
        super().__init__()
        self.defence, self.net = Quantise(levels), net

    def forward(self, x: Tensor) -> Tensor:
        """Return the net's scores of the rounded input."""
        scores: Tensor = self.net(self.defence(x))
        return scores


class ResizePad(nn.Module):
    """Shrink each image to a random share of its side and pad it with zeros at a random place."""

    def __init__(self, low: float = 0.7, high: float = 1.0) -> None:
        super().__init__()
        if not 0 < low <= high <= 1:
            raise InputError(f"low={low}, high={high}: shares of the side, 0 < low <= high <= 1")
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the same shape."""
        u = torch.rand(3, len(x), dtype=x.dtype, device=x.device)
        share = self.low + (self.high - self.low) * u[0]
        theta = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / share
        # The middle of the small image lies anywhere from which it is whole.
        theta[:, 0, 2], theta[:, 1, 2] = ((1 - 2 * u[1:]) * (1 - share) / share).unbind(0)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class RandomResizePad(nn.Module):
    """A net behind random resizing and padding (Xie et al. 2018).

    low, high: the share of the side that is kept. Every forward is another function, and an attack
    that follows one draw at a time ends where the next does not. Broken by averaging:
    `foible.attacks.eot(foible.attacks.pgd(threat), 20)`.
    """

    def __init__(self, net: nn.Module, low: float = 0.7, high: float = 1.0) -> None:
        super().__init__()
        self.defence, self.net = ResizePad(low, high), net

    def forward(self, x: Tensor) -> Tensor:
        """Return the net's scores of one random view."""
        scores: Tensor = self.net(self.defence(x))
        return scores


class AddNoise(nn.Module):
    """Add Gaussian noise, `sigma` times the activation's own root mean square."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Return the noisy activation."""
        size = x.detach().flatten(1).square().mean(1).sqrt()
        scale = self.sigma * size.reshape(-1, *([1] * (x.dim() - 1)))
        return x + scale * torch.randn_like(x)


class NoisyActivations(nn.Module):
    """A copy of a net with Gaussian noise after every ReLU (Liu et al. 2018, random self-ensemble).

    sigma: the noise in units of the activation's root mean square. Broken by averaging:
    `foible.attacks.eot(foible.attacks.pgd(threat), 20)`.
    """

    def __init__(self, net: nn.Module, sigma: float = 1.0) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        found = [
            (module, name)
            for module in self.net.modules()
            for name, child in module._modules.items()
            if isinstance(child, nn.ReLU)
        ]
        if not found:
            raise InputError("no nn.ReLU module was found to put noise behind")
        for module, name in found:
            module._modules[name] = nn.Sequential(nn.ReLU(), AddNoise(sigma))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores; another draw each time."""
        scores: Tensor = self.net(x)
        return scores


class Detached(nn.Module):
    """The logarithm of the softmax, cut off the graph."""

    def forward(self, z: Tensor) -> Tensor:
        """Return log-probabilities without a gradient."""
        return F.log_softmax(z.detach(), 1)


class DetachedSoftmax(nn.Module):
    """A net whose probabilities are computed off the graph: the plainest zero gradient.

    What a model served as an exported graph, or through numpy, looks like to autograd. Broken by
    BPDA, `foible.models.bpda(DetachedSoftmax(net), at="defence", backward=torch.nn.LogSoftmax(1))`,
    and by anything that needs no gradient.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.defence = net, Detached()

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (B, K)."""
        scores: Tensor = self.defence(self.net(x))
        return scores


class MinMaxLogits(nn.Module):
    """A net whose logits are rescaled, sample by sample, to fill [0, high].

    The range hides how sure the net is: with a high of 10,000 the label's probability is 1 in
    float32 until the very boundary, and the cross-entropy has no gradient. No order of classes
    changes. Broken by a loss on differences of logits: `pgd(threat, objective="margin")` or "dlr".

    >>> MinMaxLogits(nn.Flatten(), 1.0)(torch.tensor([[1.0, 3.0, 2.0]])).tolist()
    [[0.0, 1.0, 0.5]]
    """

    def __init__(self, net: nn.Module, high: float = 10_000.0) -> None:
        super().__init__()
        self.net, self.high = net, high

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) in [0, high]."""
        z = self.net(x)
        low = z.amin(1, keepdim=True)
        width = (z.amax(1, keepdim=True) - low).clamp_min(1e-12)
        scores: Tensor = self.high * (z - low) / width
        return scores


class Temperature(nn.Module):
    """A net whose logits are multiplied by `factor`.

    A net distilled at temperature T and used at 1 has logits T times as large (Papernot et al.
    2016, defensive distillation at T = 100): its softmax is 1 and 0 in float32, and the
    cross-entropy has no gradient (Carlini and Wagner 2017). Broken by a loss on differences of
    logits: `pgd(threat, objective="margin")` or "dlr", or by PGD in float64 with logits divided
    again.
    """

    def __init__(self, net: nn.Module, factor: float = 100.0) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K)."""
        scores: Tensor = self.factor * self.net(x)
        return scores
