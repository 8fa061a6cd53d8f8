"""Fused-lasso least squares, many problems at once: neighbouring coefficients want to be equal.

By ADMM (Boyd et al. 2011): it converges for every convex problem of this form, and its one
factorisation serves all iterations. Polished on the jumps that it finds, the answer is exact to
rounding; from the last answer of an EM the jumps are mostly right at once, and none is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUND, _ROUNDS, _RELAX = 20, 100, 1.6


def fused_least_squares(
    gram: Tensor,
    cross: Tensor,
    bound: Tensor | None,
    start: Tensor | None = None,
    *,
    limited: bool = False,
) -> Tensor:
    """Return the minimisers b (P, D) of b'Gb / 2 - c'b + bound TV(b), or with TV(b) <= bound.

    TV(b) is the sum of |b_j - b_(j+1)|. gram: (P, D, D), positive definite; cross: (P, D); both
    float64. bound: (P,), a penalty's factor or, if limited, the most that TV may be; None is plain
    least squares. start: (P, D) to begin at, such as the answer to a similar problem.

    >>> gram = torch.eye(4).double()[None]
    >>> noisy = torch.tensor([[0.9, 1.1, 4.9, 5.1]]).double()
    >>> fused_least_squares(gram, noisy, torch.tensor([0.2]).double())
    tensor([[1.1000, 1.1000, 4.9000, 4.9000]], dtype=torch.float64)
    """
    if bound is None or cross.shape[1] == 1:
        return _solved(gram, cross)
    bites = bound > 0
    plain = cross if not limited and bool(bites.all()) else _solved(gram, cross)
    if limited:
        bites = (plain[:, 1:] - plain[:, :-1]).abs().sum(1) > bound
    left = bites.nonzero().squeeze(1)
    if len(left) == 0:
        return plain
    # In levels and jumps, b = T (level, jumps), it is a lasso; the level is free and solved out.
    full, most = _after(_after(gram[left]).mT), _after(cross[left])
    top, row = full[:, :1, :1], full[:, :1, 1:]
    inner = full[:, 1:, 1:] - row.mT @ row / top
    aim = most[:, 1:] - row.squeeze(1) * most[:, :1] / top.squeeze(2)
    begin = (torch.zeros_like(cross) if start is None else start)[left]
    jumps = _lasso(inner, aim, bound[left], begin[:, 1:] - begin[:, :-1], limited)
    level = (most[:, :1] - (row @ jumps[:, :, None]).squeeze(2)) / top.squeeze(2)
    found = torch.cat([level, jumps], 1).cumsum(1)
    return plain.index_copy(0, left, found)


def _solved(gram: Tensor, cross: Tensor) -> Tensor:
    found: Tensor = torch.linalg.solve(gram, cross)
    return found


def _after(values: Tensor) -> Tensor:
    """Return, at each place of dimension 1, the sum from there to the end."""
    return values.flip(1).cumsum(1).flip(1)


def _lasso(inner: Tensor, aim: Tensor, bound: Tensor, jumps: Tensor, limited: bool) -> Tensor:
    """Minimise u'Hu / 2 - q'u with bound |u|_1 added, or within |u|_1 <= bound: (P, J)."""
    jumps = jumps.clone()
    left = torch.arange(len(jumps), device=jumps.device)
    u, slope = jumps, aim - _times(inner, jumps)
    # Between the ends of the spectrum of independent features that stand in a row.
    scale = inner.diagonal(dim1=1, dim2=2)
    rho = (scale.amin(1) * scale.amax(1)).sqrt()
    inverse: Tensor | None = None
    for _ in range(_ROUNDS):
        exact, done = _polished(inner, aim, bound, u, limited)
        jumps[left] = torch.where(done[:, None], exact, u)
        go = (~done).nonzero().squeeze(1)
        if len(go) == 0:
            break
        if len(go) < len(left):
            left, inner, aim, bound = left[go], inner[go], aim[go], bound[go]
            u, slope, rho = u[go], slope[go], rho[go]
            inverse = None if inverse is None else inverse[go]
        if inverse is None:
            eye = torch.eye(aim.shape[1]).to(aim)
            inverse = torch.cholesky_inverse(
                torch.linalg.cholesky(inner + rho[:, None, None] * eye)
            )
        u, slope = _admm(inverse, aim, bound, (u, slope), rho, limited)
    return jumps


def _admm(
    inverse: Tensor,
    aim: Tensor,
    bound: Tensor,
    state: tuple[Tensor, Tensor],
    rho: Tensor,
    limited: bool,
) -> tuple[Tensor, Tensor]:
    """Return the jumps and their multipliers (P, J) after a round of over-relaxed iterations."""
    u, rho = state[0], rho[:, None]
    w = state[1] / rho
    reach = (bound[:, None] / rho) if not limited else bound[:, None]
    for _ in range(_ROUND):
        x = _times(inverse, aim + rho * (u - w))
        at = _RELAX * x + (1 - _RELAX) * u + w
        u = _into_l1(at, reach) if limited else at - at.clamp(-reach, reach)
        w = at - u
    return u, w * rho


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[:, :, None]).squeeze(2)


def _into_l1(at: Tensor, radius: Tensor) -> Tensor:
    """Return the nearest points (P, J) of |u|_1 <= radius (Duchi et al. 2008)."""
    size = at.abs()
    ranked = size.sort(1, descending=True).values
    number = torch.arange(1, at.shape[1] + 1, device=at.device)
    cut = (ranked.cumsum(1) - radius) / number
    held = (ranked > cut).sum(1, keepdim=True).clamp_min(1)
    level = cut.gather(1, held - 1).clamp_min(0)
    return at.sign() * (size - level).clamp_min(0)


def _polished(
    inner: Tensor, aim: Tensor, bound: Tensor, u: Tensor, limited: bool
) -> tuple[Tensor, Tensor]:
    """Return the optimum (P, J) on the jumps of u with their signs, and whether it is the optimum.

    The optimality conditions are checked: signs kept, and no other jump pulls harder.
    """
    sign = u.sign()
    on = (sign != 0).to(aim)
    system = inner * on[:, :, None] * on[:, None, :] + torch.diag_embed(1 - on)
    both = torch.linalg.solve(system, torch.stack([aim * on, sign], 2))
    free, pull = both[:, :, 0], both[:, :, 1]
    if limited:
        total = (sign * pull).sum(1)
        force = ((sign * free).sum(1) - bound) / total.clamp_min(torch.finfo(aim.dtype).tiny)
    else:
        force = bound
    exact = free - force[:, None] * pull
    slope = aim - _times(inner, exact)
    if limited:  # without a jump only the limit 0 is used up, by whatever force that takes
        alone = torch.where(bound == 0, slope.abs().amax(1), -torch.inf)
        force = torch.where(on.sum(1) > 0, force, alone)
    slack = 1e-9 * aim.abs().amax(1)
    kept = ((exact.sign() == sign) | (on == 0)).all(1)
    outside = (slope.abs() * (1 - on)).amax(1) <= force + slack
    done = kept & outside & (force >= 0)
    return torch.where(on > 0, exact, 0.0), done
