"""Heads: from features to suspicion. Fitted by scikit-learn or torch, scored in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foible.core.errors import InputError, MissingExtra
from foible.detect.base import Head, State, named, part_of


def sklearn(module: str) -> Any:
    """Return a module of scikit-learn, or say how to get it."""
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise MissingExtra(
            "this detector is fitted by scikit-learn, which is not installed: "
            "pip install 'foible[sklearn]'"
        ) from error


def flat(features: Tensor) -> Tensor:
    """Return features as (B, F)."""
    return features.flatten(1) if features.dim() > 1 else features[:, None]


def scaled(features: Tensor, state: State) -> Tensor:
    """Return features (B, F) with the mean 0 and the spread 1 that they had where it was learnt."""
    return (flat(features) - state["mean"]) / state["spread"]


def scale_of(features: Tensor) -> State:
    """Return the mean and spread of features (N, F), in float64; a constant one keeps its unit."""
    data = flat(features).double()
    spread = data.std(0, unbiased=False)
    return {"mean": data.mean(0), "spread": torch.where(spread > 1e-12, spread, 1.0)}


@dataclass(frozen=True)
class Largest(Head):
    """The feature that stands out most: no adversarials are learnt from.

    sided: "high" (large values are suspect), "low", or "both". normed: in units of each feature's
    spread over clean inputs; a single feature needs no unit.
    """

    sided: str = "high"
    normed: bool = True
    supervised = False

    def __post_init__(self) -> None:
        if self.sided not in ("high", "low", "both"):
            raise InputError(f"sided is {self.sided!r}: choose high, low or both")

    def learn(self, features: Tensor, bad: Tensor, seed: int) -> State:
        """Learn the clean features' scale."""
        return scale_of(features[~bad]) if self.normed else {}

    def __call__(self, features: Tensor, state: State) -> Tensor:
        """Return (B,)."""
        found = scaled(features.double(), state) if self.normed else flat(features)
        if self.sided != "high":
            found = found.abs() if self.sided == "both" else -found
        return found.amax(1)


@dataclass(frozen=True)
class Logistic(Head):
    """Logistic regression on scaled features. c: the inverse of its L2 penalty."""

    c: float = 1.0

    def learn(self, features: Tensor, bad: Tensor, seed: int) -> State:
        """Fit; both kinds weigh alike, however many there are of each."""
        state = scale_of(features)
        model = sklearn("linear_model").LogisticRegression(
            C=self.c, class_weight="balanced", max_iter=2000, random_state=seed
        )
        model.fit(scaled(features.double(), state).cpu().numpy(), bad.cpu().numpy())
        return {
            **state, "weight": torch.from_numpy(model.coef_[0]).to(features.device),
            "bias": torch.tensor(float(model.intercept_[0]), dtype=torch.float64),
        }  # fmt: skip

    def __call__(self, features: Tensor, state: State) -> Tensor:
        """Return the log-odds (B,) of being adversarial."""
        return scaled(features.double(), state) @ state["weight"] + state["bias"]


@dataclass(frozen=True)
class Svm(Head):
    """A support vector machine with a Gaussian kernel, on scaled features. c, gamma: its own.

    gamma: None is one over the number of features.
    """

    c: float = 1.0
    gamma: float | None = None

    def learn(self, features: Tensor, bad: Tensor, seed: int) -> State:
        """Fit, and keep the support vectors."""
        state = scale_of(features)
        data = scaled(features.double(), state)
        gamma = 1.0 / data.shape[1] if self.gamma is None else self.gamma
        model = sklearn("svm").SVC(C=self.c, gamma=gamma, class_weight="balanced")
        model.fit(data.cpu().numpy(), bad.cpu().numpy())
        return {
            **state, "support": torch.from_numpy(model.support_vectors_).to(features.device),
            "weight": torch.from_numpy(model.dual_coef_[0]).to(features.device),
            "bias": torch.tensor(float(model.intercept_[0]), dtype=torch.float64),
            "gamma": torch.tensor(gamma, dtype=torch.float64),
        }  # fmt: skip

    def __call__(self, features: Tensor, state: State) -> Tensor:
        """Return the distance to the boundary (B,), positive on the adversarial side."""
        data, support = scaled(features.double(), state), state["support"]
        apart = data.square().sum(1, keepdim=True) + support.square().sum(1) - 2 * data @ support.T
        kernel = torch.exp(-state["gamma"] * apart.clamp_min(0))
        return kernel @ state["weight"] + state["bias"]


@dataclass(frozen=True)
class Forest(Head):
    """A random forest: no gradient passes, which protects nothing (`soft` is a logistic stand-in).

    trees: how many; leaf: the fewest samples of a leaf.
    """

    trees: int = 100
    leaf: int = 1
    differentiable = False

    def learn(self, features: Tensor, bad: Tensor, seed: int) -> State:
        """Fit, and keep the trees as tables: children, feature, cut and share of each node."""
        data = flat(features).double()
        model = sklearn("ensemble").RandomForestClassifier(
            self.trees, min_samples_leaf=self.leaf, class_weight="balanced", random_state=seed
        )
        # scikit-learn compares in float32, and so do we.
        model.fit(data.float().cpu().numpy(), bad.cpu().numpy())
        trees = [one.tree_ for one in model.estimators_]
        most = max(tree.node_count for tree in trees)
        depth = max(int(tree.max_depth) for tree in trees)
        left = torch.zeros(len(trees), most, dtype=torch.int64)
        right, column = torch.zeros_like(left), torch.zeros_like(left)
        cut = torch.zeros(len(trees), most, dtype=torch.float64)
        share = torch.zeros_like(cut)
        for i, tree in enumerate(trees):
            n = tree.node_count
            inner = torch.from_numpy(tree.children_left) >= 0
            here = torch.arange(n)
            # A leaf leads to itself, so that all inputs walk as many steps.
            left[i, :n] = torch.where(inner, torch.from_numpy(tree.children_left), here)
            right[i, :n] = torch.where(inner, torch.from_numpy(tree.children_right), here)
            column[i, :n] = torch.from_numpy(tree.feature).clamp_min(0)
            cut[i, :n] = torch.from_numpy(tree.threshold)
            value = torch.from_numpy(tree.value[:, 0])
            share[i, :n] = value[:, 1] / value.sum(1)
        held = {"left": left, "right": right, "column": column, "cut": cut, "share": share}
        held = {k: v.to(features.device) for k, v in held.items()}
        stand_in = Logistic().learn(features, bad, seed)
        return {**held, "depth": torch.tensor(depth), **named(stand_in, "soft")}

    def __call__(self, features: Tensor, state: State) -> Tensor:
        """Return the mean share (B,) of adversarials in the leaves that an input falls into."""
        data = flat(features).float().double()
        trees = torch.arange(len(state["left"]), device=data.device)[:, None]
        node = torch.zeros(len(trees), len(data), dtype=torch.int64, device=data.device)
        rows = torch.arange(len(data), device=data.device)[None]
        for _ in range(int(state["depth"])):
            goes_left = data[rows, state["column"][trees, node]] <= state["cut"][trees, node]
            node = torch.where(goes_left, state["left"][trees, node], state["right"][trees, node])
        return state["share"][trees, node].mean(0)

    def soft(self, features: Tensor, state: State) -> Tensor:
        """Return the log-odds (B,) of a logistic regression on the same features."""
        return Logistic()(features, part_of(state, "soft"))
