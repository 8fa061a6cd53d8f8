"""The smallest Linf change that flips a small ReLU net, proved by a mixed-integer program.

It owes nothing to foible's attacks: they may only name a radius to look within, which makes the
bounds of the units tight, and a wrong one cannot make a wrong proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from torch import Tensor, nn

import foible
from foible.attacks import Attack, cw, deepfool, fab, fab_targeted
from foible.attacks.fast_minimum import fmn
from foible.models import TorchModel, wrap

GAP = 1e-6
INFEASIBLE = 2
Layer = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Minimum:
    """No change smaller than `proved` flips the net; `found` is the size of one that does."""

    proved: float
    found: float
    change: np.ndarray | None


def layers(net: nn.Module) -> list[Layer]:
    """Weights and biases of a Flatten? (Linear ReLU)* Linear."""
    parts = [m for m in net.modules() if not isinstance(m, (nn.Sequential, nn.Flatten))]
    kinds = [type(m) for m in parts]
    assert kinds == [nn.Linear, nn.ReLU] * (len(parts) // 2) + [nn.Linear], kinds
    return [
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in parts[::2]
    ]


def scores(net: list[Layer], x: np.ndarray) -> np.ndarray:
    for w, b in net[:-1]:
        x = np.maximum(w @ x + b, 0)
    return net[-1][0] @ x + net[-1][1]


def minimum(
    net: list[Layer], x: np.ndarray, y: int, radius: float, box: tuple[float, float] = (0.0, 1.0)
) -> Minimum:
    """The least over the other classes; a minimum beyond radius is proved to be at least it."""
    margins = scores(net, x)
    proved = found = radius
    change = None
    for j in np.argsort(-margins):  # likely ones first: they shrink the ball of the others
        if j == y:
            continue
        one = towards(net, x, (y, int(j)), found, box)
        proved = min(proved, one.proved)
        if one.change is not None and one.found <= found:
            found, change = one.found, one.change
    return Minimum(min(proved, found), found if change is not None else float("inf"), change)


def towards(
    net: list[Layer], x: np.ndarray, pair: tuple[int, int], radius: float, box: tuple[float, float]
) -> Minimum:
    """The smallest t with |d| <= t <= radius, x + d in the box, and score j at least score y."""
    low, high = np.maximum(x - radius, box[0]), np.minimum(x + radius, box[1])
    programme = Programme()
    t = programme.variables(np.zeros(1), np.full(1, radius))
    at = programme.variables(low, high)
    one = np.ones((len(x), 1))
    programme.at_most([(np.eye(len(x)), at), (-one, t)], x)
    programme.at_most([(-np.eye(len(x)), at), (-one, t)], -x)
    for w, b in net[:-1]:
        at, low, high = programme.relu(w, b, at, low, high)
    w, b = net[-1]
    y, j = pair
    programme.at_most([((w[y] - w[j])[None], at)], np.array([b[j] - b[y]]))
    status, value, bound, answer = programme.solve(t)
    if status == INFEASIBLE:
        return Minimum(radius, float("inf"), None)
    return Minimum(bound, value, answer[1 : 1 + len(x)] - x)


class Programme:
    """Rows and columns of a mixed-integer program, put together block by block."""

    def __init__(self) -> None:
        self.low: list[float] = []
        self.high: list[float] = []
        self.whole: list[int] = []
        self.cells: list[tuple[int, int, float]] = []
        self.right: list[float] = []

    def variables(self, low: np.ndarray, high: np.ndarray, whole: bool = False) -> np.ndarray:
        start = len(self.low)
        self.low += low.tolist()
        self.high += high.tolist()
        self.whole += [int(whole)] * len(low)
        return np.arange(start, len(self.low))

    def at_most(self, terms: list[tuple[np.ndarray, np.ndarray]], right: np.ndarray) -> None:
        """sum of matrix @ variables <= right."""
        start = len(self.right)
        for matrix, at in terms:
            for i, k in zip(*matrix.nonzero(), strict=True):
                self.cells.append((start + int(i), int(at[k]), float(matrix[i, k])))
        self.right += right.tolist()

    def relu(
        self, w: np.ndarray, b: np.ndarray, at: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """h = max(w v + b, 0), with a binary for each unit that the bounds of v leave open."""
        up, down = np.maximum(w, 0), np.minimum(w, 0)
        least, most = up @ low + down @ high + b, up @ high + down @ low + b
        h = self.variables(np.maximum(least, 0), np.maximum(most, 0))
        live = most > 0
        eye = np.eye(len(b))
        self.at_most([(w[live], at), (-eye[live], h)], -b[live])  # h >= z
        on = live & (least >= 0)
        self.at_most([(-w[on], at), (eye[on], h)], b[on])  # h <= z
        open_ = live & (least < 0)
        a = self.variables(np.zeros(open_.sum()), np.ones(open_.sum()), whole=True)
        # h <= z - least (1 - a) and h <= most a
        self.at_most(
            [(-w[open_], at), (eye[open_], h), (np.diag(-least[open_]), a)],
            b[open_] - least[open_],
        )
        self.at_most([(eye[open_], h), (np.diag(-most[open_]), a)], np.zeros(open_.sum()))
        return h, np.maximum(least, 0), np.maximum(most, 0)

    def solve(self, least: np.ndarray) -> tuple[int, float, float, np.ndarray]:
        """(status, value, proved bound, answer) of the smallest value of one variable."""
        cost = np.zeros(len(self.low))
        cost[least] = 1.0
        row, column, value = zip(*self.cells, strict=True)
        matrix = coo_array((value, (row, column)), shape=(len(self.right), len(cost)))
        answer = milp(
            cost, integrality=self.whole, bounds=Bounds(self.low, self.high),
            constraints=LinearConstraint(matrix.tocsr(), -np.inf, self.right),
            options={"mip_rel_gap": GAP},
        )  # fmt: skip
        if answer.status == INFEASIBLE:
            return INFEASIBLE, float("inf"), float("inf"), cost
        assert answer.status == 0, answer.message
        bound = answer.mip_dual_bound if any(self.whole) else answer.fun
        return 0, float(answer.fun), float(bound), answer.x


# ---------------------------------------------------------------- the net, and the attacks


@dataclass(frozen=True)
class Victim:
    """A net trained on digits of 7 x 7, and inputs that it never saw and classifies rightly."""

    net: nn.Module
    x: Tensor
    y: Tensor
    accuracy: float

    @property
    def model(self) -> TorchModel:
        return wrap(self.net)

    @cached_property
    def layers(self) -> list[Layer]:
        return layers(self.net)


def victim(hidden: tuple[int, ...], inputs: int, seed: int = 0, steps: int = 400) -> Victim:
    """Adam on 800 of the zoo's images, averaged down to 7 x 7, in float64."""
    x, y = foible.zoo.sample()
    x = F.avg_pool2d(x.double(), 4)
    draw = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten())
    for i, (a, b) in enumerate(zip((49, *hidden), (*hidden, 10), strict=True)):
        net.extend([nn.ReLU()] if i else [])
        layer = nn.utils.skip_init(nn.Linear, a, b, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(b, a, generator=draw) * (2 / a) ** 0.5)
            layer.bias.zero_()
        net.append(layer)
    adam = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(steps):
        some = torch.randint(800, (100,), generator=draw)
        loss = F.cross_entropy(net(x[some]), y[some])
        adam.zero_grad()
        loss.backward()
        adam.step()
    net.eval().requires_grad_(False)
    x, y = x[800:], y[800:]
    right = net(x).argmax(1) == y
    return Victim(net, x[right][:inputs], y[right][:inputs], float(right.double().mean()))


@dataclass(frozen=True)
class Bracket:
    """Of one input: no change is smaller than proved; found flips it; so does each attack's."""

    proved: float
    found: float
    attacked: float
    by: str

    @property
    def ratio(self) -> float:
        return self.attacked / self.proved


def distances(held: Victim, attacks: dict[str, Attack]) -> dict[str, np.ndarray]:
    """Distance of each attack and input; infinite where it found nothing. Checked by hand."""
    found = {}
    for name, attack in attacks.items():
        result = attack(held.model, held.x, held.y)
        change = (result.x - held.x).flatten(1).abs().amax(1)
        flipped = held.net(result.x).argmax(1) != held.y
        inside = ((result.x >= 0) & (result.x <= 1)).flatten(1).all(1)
        size = torch.where(flipped & inside, change, torch.inf)
        found[name] = size.numpy()
    return found


def brackets(held: Victim, found: dict[str, np.ndarray]) -> list[Bracket]:
    """Proof beside the best attack, input by input."""
    names = list(found)
    table = np.stack([found[name] for name in names])
    out = []
    for i in range(len(held.x)):
        best = int(table[:, i].argmin())
        attacked = float(table[best, i])
        # A little further than the attack went, so that its own point is inside the ball.
        radius = min(attacked * (1 + 1e-4), 1.0)
        exact = minimum(held.layers, held.x[i].flatten().numpy(), int(held.y[i]), radius)
        out.append(Bracket(exact.proved, exact.found, attacked, names[best]))
    return out


def minimum_norm(targeted_steps: int = 100) -> dict[str, Attack]:
    """foible's minimum-norm attacks in Linf with their defaults; fab_targeted is the slow one.

    It is also the one that goes for every class: the others may walk to a class that is nearest
    by its gradient at the clean input, but not in truth.
    """
    ball = foible.Linf()
    return {
        "fab": fab(ball),
        "fmn": fmn(ball),
        "deepfool": deepfool(ball),
        "cw": cw(ball),
        "fab_targeted": fab_targeted(ball, targeted_steps),
    }
