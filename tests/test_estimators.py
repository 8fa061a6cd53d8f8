"""Classifiers without gradients: held as models, crossed exactly, and in the matrix of transfer."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Counter, filled, generator, linear_case, predicted, rand
from torch import Tensor, nn

from foible.attacks import (
    fgsm,
    path_flip,
    pgd,
    random_noise,
    square,
    substitute,
    transfer,
    transfer_matrix,
)
from foible.core.access import Access
from foible.core.errors import AccessError, InputError, KindError, ModelError
from foible.models import estimator, wrap
from foible.models.standins import stand_in
from foible.parts.threats import L0, L1, L2, Linf

sklearn = pytest.importorskip("sklearn")
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402
from sklearn.linear_model import LogisticRegression, RidgeClassifier  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import SVC, LinearSVC  # noqa: E402
from sklearn.tree import DecisionTreeClassifier  # noqa: E402


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return (found.data / 16).astype(np.float32), found.target


@cache
def fitted(kind: Any, **settings: Any) -> Any:
    x, y = digits()
    return estimator(kind(**settings).fit(x[:1200], y[:1200]))


def unseen(rows: int = 300, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, y = digits()
    return torch.from_numpy(x[1200 : 1200 + rows]).to(dtype), torch.from_numpy(
        y[1200 : 1200 + rows]
    )


def net_on_digits() -> nn.Module:
    net = filled(nn.Sequential(nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 10)), 1)
    x, y = (torch.from_numpy(part[:1200]) for part in digits())
    optimiser, order = torch.optim.Adam(net.parameters(), 3e-3), generator(0)
    for _ in range(25):
        for part in torch.randperm(1200, generator=order).split(100):
            optimiser.zero_grad()
            F.cross_entropy(net(x[part]), y[part]).backward()
            optimiser.step()
    return net


# --- held as a model

KINDS = [(LogisticRegression, {"max_iter": 300}), (DecisionTreeClassifier, {"max_depth": 6}),
         (KNeighborsClassifier, {}), (LinearSVC, {}), (SVC, {}),
         (RandomForestClassifier, {"n_estimators": 7})]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_labels_are_those_of_predict(kind: Any, settings: Any, dtype: torch.dtype) -> None:
    model, (x, _) = (
        fitted(kind, random_state=0, **settings)
        if "Forest" in kind.__name__
        else fitted(kind, **settings),
        unseen(120, dtype),
    )
    noisy = (x + 0.3 * torch.randn(x.shape, generator=generator(1), dtype=dtype)).clamp(0, 1)
    scores = model(noisy)
    assert scores.shape == (120, 10) and scores.dtype == dtype
    assert scores.argmax(1).tolist() == model.held.predict(noisy.double().numpy()).tolist()
    images = noisy.view(-1, 8, 8)
    assert torch.equal(model(images), scores)
    assert model.access == (
        Access.SCORES if hasattr(model.held, "predict_proba") else Access.LABELS
    )


class Stub:
    """predict and predict_proba as one says."""

    def __init__(self, classes: Any, labels: Any, shares: Any = None) -> None:
        self.classes_, self.labels = np.array(classes), np.array(labels)
        if shares is not None:
            self.predict_proba = lambda table: np.array(shares)[: len(table)]

    def predict(self, table: np.ndarray) -> np.ndarray:
        return self.labels[: len(table)]


@pytest.mark.parametrize(("classes", "labels", "wanted", "count"), [
    ([0, 1, 2], [2, 0, 1], [2, 0, 1], 3),
    ([1, 4], [4, 1, 4], [4, 1, 4], 5),
    ([-1, 1], [1, -1, 1], [1, 0, 1], 2),
    ([0.0, 1.0], [1.0, 0.0, 0.0], [1, 0, 0], 2),
    (["cat", "dog"], ["dog", "cat", "cat"], [1, 0, 0], 2),
    ([False, True], [True, False, True], [1, 0, 1], 2),
    ([2, 0, 1], [2, 0, 1], [2, 0, 1], 3),
])  # fmt: skip
def test_how_classes_are_numbered(classes: Any, labels: Any, wanted: Any, count: int) -> None:
    model = estimator(Stub(classes, labels))
    assert model(rand(3, 2, seed=1)).argmax(1).tolist() == wanted
    assert model.classes == count


def test_predict_has_the_last_word_on_the_label() -> None:
    shares = [[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.1, 0.8]]
    model = estimator(Stub([0, 1, 2], [2, 1, 2], shares))
    scores = model(rand(3, 2, seed=1, dtype=torch.float64))
    assert scores.argmax(1).tolist() == [2, 1, 2]
    torch.testing.assert_close(scores[0, 1].exp(), torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(scores[2].exp().tolist(), shares[2])


def test_what_is_no_classifier_is_refused() -> None:
    x = rand(3, 2, seed=1)
    with pytest.raises(KindError, match="wrap"):
        estimator(nn.Linear(2, 2))
    with pytest.raises(KindError, match="fit it first"):
        estimator(LinearSVC())
    with pytest.raises(InputError, match="at most"):
        estimator(Stub([0, 1], [0]), access=Access.SCORES)
    with pytest.raises(InputError, match="first must be below"):
        estimator(Stub([0, 1], [0]), bounds=(1, 0))
    with pytest.raises(InputError, match="number the classes"):
        estimator(Stub([0, 20_000], [0]))
    with pytest.raises(InputError, match="64"):
        fitted(KNeighborsClassifier)(x)
    with pytest.raises(ModelError, match="predict_proba"):
        estimator(Stub([0, 1], [0, 1, 1], [[1.0]] * 3))(x)
    with pytest.raises(AccessError, match="GRADIENTS"):
        fgsm(Linf(0.1))(fitted(KNeighborsClassifier), *unseen(3))


def test_black_box_attacks_and_substitutes_run_on_it() -> None:
    model, (x, y) = fitted(LogisticRegression, max_iter=300), unseen(40)
    result = square(Linf(0.3), 60)(model, x, y)
    assert torch.equal(result.success, predicted_by(model, result.x) != y)
    assert result.success_rate > (random_noise(Linf(0.3))(model, x, y).success_rate or 0) + 0.2
    scaled = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(*digits())
    held = Counter(estimator(scaled), level=Access.LABELS)  # type: ignore[arg-type]
    found = substitute(held, x, rounds=2)
    assert held.forwards == found.queries == 80
    assert transfer(pgd(Linf(0.3), 3), found.model)(held, x, y).backwards.sum() > 0


def predicted_by(model: Any, x: Tensor) -> Tensor:
    return model(x).argmax(1)


# --- stand-ins and exact crossings


@pytest.mark.parametrize(("kind", "settings"), [
    (LogisticRegression, {"max_iter": 300}), (LinearSVC, {}), (RidgeClassifier, {}),
])  # fmt: skip
def test_a_linear_one_has_itself_as_stand_in(kind: Any, settings: Any) -> None:
    model, (x, _) = fitted(kind, **settings), unseen(dtype=torch.float64)
    soft = stand_in(model)
    wanted = torch.from_numpy(model.held.decision_function(x.numpy()))
    torch.testing.assert_close(soft(x), wanted)


@pytest.mark.parametrize(("kind", "settings", "least"), [
    (SVC, {"kernel": "linear"}, 0.85), (KNeighborsClassifier, {}, 0.95),
    (DecisionTreeClassifier, {"max_depth": 8}, 0.6),
])  # fmt: skip
def test_a_soft_stand_in_mostly_agrees(kind: Any, settings: Any, least: float) -> None:
    model, (x, _) = fitted(kind, **settings), unseen()
    agreed = predicted_by(stand_in(model), x) == predicted_by(model, x)
    assert agreed.float().mean() >= least


@pytest.mark.parametrize("kind", [LogisticRegression, LinearSVC])
def test_two_classes_and_gaps_keep_their_numbers(kind: Any) -> None:
    x, y = digits()
    two = np.isin(y, (3, 8))
    model = estimator(kind().fit(x[two], y[two]))
    part = torch.from_numpy(x[two])
    assert torch.equal(predicted_by(stand_in(model), part), predicted_by(model, part))
    assert model.classes == 9
    assert stand_in(estimator(Stub([0, 1], [0]))) is None
    assert stand_in(fitted(RandomForestClassifier, n_estimators=7, random_state=0)) is None


@pytest.mark.parametrize("threat", [Linf(), L2(), L1()])
def test_no_point_nearer_than_a_path_flip_changes_the_tree(threat: Any) -> None:
    model, (x, y) = fitted(DecisionTreeClassifier, max_depth=8), unseen(60, torch.float64)
    result = path_flip(model, threat)(model, x, y)
    assert result.success.all() and (result.forwards[result.attacked] == 3).all()
    assert torch.isfinite(result.distance).all()
    fooled = torch.tensor([s == "fooled" for s in result.status])
    # Random points of the ball just short of the minimum, along coordinates that matter too.
    draws, g = [], generator(2)
    for keep in (1, 2, 4, 64):
        way = torch.randn(200, len(x), 64, generator=g, dtype=torch.float64)
        rank = way.abs().argsort(-1).argsort(-1)
        way = torch.where(rank >= 64 - keep, way.sign() if threat.norm == "linf" else way, 0)
        size = threat.length(way.flatten(0, 1)).view(200, -1, 1)
        draws.append(
            (x + way / size * (0.999 * result.distance - 2e-6).clamp_min(0)[:, None]).clamp(0, 1)
        )
    near = torch.cat(draws)[:, fooled]
    labels = predicted_by(model, near.flatten(0, 1)).view(near.shape[:2])
    assert bool((labels == y[fooled]).all())


def test_a_path_flip_towards_a_target_and_in_l0_and_within_eps() -> None:
    model, (x, y) = fitted(DecisionTreeClassifier, max_depth=8), unseen(60)
    target = (y + 3) % 10
    aimed = path_flip(model, L2())(model, x, y, target=target)
    assert torch.equal(aimed.label[aimed.success], target[aimed.success]) and aimed.success.all()
    free = path_flip(model, L2())(model, x, y)
    assert bool((aimed.distance >= free.distance - 1e-9).all())
    few = path_flip(model, L0())(model, x, y)
    assert few.success.all() and few.distance.max() <= 8
    cut = path_flip(model, Linf(0.1))(model, x, y)
    least = path_flip(model, Linf())(model, x, y).distance
    assert torch.equal(cut.success, least <= 0.1 * (1 + 1e-6))
    spent = path_flip(model, Linf(0.1), spend=True)(model, x, y)
    assert torch.equal(spent.success, cut.success)
    kept = spent.attacked
    assert (spent.distance[kept] > 0.0999).all() and (spent.distance <= 0.1 * (1 + 1e-6)).all()
    with pytest.raises(KindError, match="decision tree"):
        path_flip(fitted(KNeighborsClassifier), Linf(0.1))


# --- the matrix


def test_the_diagonal_is_the_white_box_rate_and_rows_say_how(capsys) -> None:
    x, y = unseen(597)
    svm = fitted(LinearSVC)
    models = {
        "net": net_on_digits(),
        "logistic": fitted(LogisticRegression, max_iter=300),
        "svm": svm,
        "tree": fitted(DecisionTreeClassifier, max_depth=None, random_state=0),
        "neighbours": fitted(KNeighborsClassifier),
    }
    threat = Linf(0.3)
    found = transfer_matrix(models, x, y, threat)
    words = ("fgsm", "closed form", "closed form", "path flip", "fgsm on its soft version")
    assert found.how == words and found.names == tuple(models)
    white = fgsm(threat)(models["net"], x, y)
    assert found.error[0, 0].item() == pytest.approx(white.success_rate)
    assert (found.x - x).abs().max() <= 0.3 * (1 + 1e-6)
    assert found.x.min() >= 0 and found.x.max() <= 1
    right = [
        predicted_by(wrap(m) if isinstance(m, nn.Module) else m, x) == y for m in models.values()
    ]
    both = right[1] & right[4]
    lost = predicted_by(models["neighbours"], found.x[1]) != y
    assert found.count[1, 4] == both.sum()
    assert found.error[1, 4].item() == pytest.approx(float(lost[both].double().mean()))
    # The bar: Papernot et al.'s matrix, most cells well above noise of equal size.
    assert found.carried >= 0.8
    with capsys.disabled():
        print(f"\n{found}\ncells 10 points above noise: {found.carried:.0%}")
    repeated = transfer_matrix(models, x, y, threat)
    assert torch.equal(repeated.x, found.x) and torch.equal(repeated.noise, found.noise)


def test_the_closed_form_is_the_optimum_of_a_linear_model() -> None:
    """At 1.02 times the distance to the nearest boundary every sample falls, at 0.98 none."""
    model, (x, y) = fitted(LogisticRegression, max_iter=300), unseen(80, torch.float64)
    right = predicted_by(model, x) == y
    x, y = x[right], y[right]
    soft = stand_in(model).net
    z = soft(x)
    normal = soft.weight[None] - soft.weight[y][:, None]
    gap = (z.gather(1, y[:, None]) - z) / normal.norm(dim=2).clamp_min(1e-12)
    least = gap.scatter(1, y[:, None], float("inf")).amin(1)
    wide = estimator(model.held, bounds=(-50, 50))
    other = fitted(DecisionTreeClassifier, max_depth=8)
    for share, wanted in ((1.02, 1.0), (0.98, 0.0)):
        found = transfer_matrix(
            {"a": wide, "b": estimator(other.held, (-50, 50))}, x, y, L2((least * share).tolist())
        )
        assert found.error[0, 0] == wanted


def test_noise_is_as_large_as_what_was_crafted() -> None:
    from foible.attacks.matrix import _rows, _shaken

    case = linear_case(4, 50, 3, wide=False)
    rows = _rows(case.x, case.y)
    for threat, eps in ((Linf(0.1), 0.2), (L2(0.1), 0.7), (L1(0.1), 1.5)):
        bound = threat.inside((0.0, 1.0))
        size = torch.linspace(0, eps, 50, dtype=torch.float64)
        shaken = _shaken(bound, type(rows)(rows.index, rows.id, rows.x, rows.y, None, size), 0)
        torch.testing.assert_close(bound.distance(rows, shaken), size, rtol=1e-3, atol=1e-6)
    few = torch.arange(50, dtype=torch.float64) % 5
    rows = type(rows)(rows.index, rows.id, rows.x, rows.y, None, few)
    shaken = _shaken(L0(0.1).inside((0.0, 1.0)), rows, 0)
    moved = shaken != case.x
    assert torch.equal(moved.sum(1).double(), few)
    assert bool(((shaken == 0) | (shaken == 1))[moved].all()), "a feature goes all the way"


def test_a_matrix_of_anything_else_is_refused() -> None:
    x, y = unseen(5)
    model = fitted(KNeighborsClassifier)
    with pytest.raises(InputError, match="two at least"):
        transfer_matrix({"one": model}, x, y, Linf(0.1))
    with pytest.raises(InputError, match="bounds"):
        transfer_matrix({"a": model, "b": estimator(model.held, (0, 16))}, x, y, Linf(0.1))
    assert predicted(net_of_one(), x).shape == (5,)


def net_of_one() -> nn.Module:
    return filled(nn.Linear(64, 10), 2)
