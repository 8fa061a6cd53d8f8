"""A net whose ReLUs are softplus, to be trained as it stands."""

from __future__ import annotations

from torch import Tensor, nn

from foible.core.errors import InputError
from foible.defend.nets.swapping import copied
from foible.models.twins import Softening, soften


class Softened(nn.Module):
    """A net whose ReLUs are softplus, modules and functions; made by `softplus`.

    Attributes: net (the copy), beta.
    """

    def __init__(self, net: nn.Module, beta: float) -> None:
        super().__init__()
        self.net, self.beta = net, beta
        self.modules_found = soften(net, beta)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the net gives; raises InputError where there is no ReLU at all."""
        with Softening(self.beta) as softening:
            out: Tensor = self.net(x)
        if self.modules_found + softening.found == 0:
            raise InputError(
                "softplus: the net has no ReLU to replace, so it is smooth or not of that kind"
            )
        return out


def softplus(net: nn.Module, beta: float = 2.0) -> Softened:
    """Return a copy with every ReLU a softplus (X4, Dombrowski et al. 2019, survey [109]).

    Where `models.softplus_twin` is what a search looks through, this is a net of its own: train it,
    or hand it out. It bounds how fast a gradient turns, so that a map is harder to bend; it is no
    defence of the prediction: `pgd` goes through, on gradients that are only smoother.

    beta: the sharpness; the lower, the smoother. Trained so, nets of ours lost no accuracy at 2 and
    their maps could be bent 30 % less far; at 10 they bent as far as those of ReLU nets. A net
    that was trained with ReLUs loses accuracy when it is softened: train it further.

    Raises InputError for a beta that is not positive, and in the first forward of a net without
    ReLUs.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> x = torch.rand(4, 2)
    >>> bool((softplus(net, 1000.0)(x) - net(x)).abs().max() < 1e-2)
    True
    """
    if not beta > 0:
        raise InputError(f"beta={beta}: the sharpness of a softplus is above 0")
    return Softened(copied(net, "softplus"), beta).train(net.training)
