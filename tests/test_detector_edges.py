"""Detectors at their edges: foreign files, the user's random state, samples that are no numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_detect import watch_of

import foible
from foible.core.errors import InputError, LogError
from foible.detect import Detector, Largest, Network, Watch, crafted, evading, load
from foible.detect.features import Pixels


def test_a_file_that_names_a_detector_but_holds_none_is_a_clear_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from foible.core.spec import spec

    _, _, _, watch = watch_of(n=60)
    whole, path = spec(watch.detector), tmp_path / "watch"
    plain = {"levels": torch.zeros(2)}
    for held, tensors, said in (
        (None, plain, "does not say which detector"),
        ("{", plain, "does not say which detector"),
        (json.dumps({**whole, "wings": 2}), plain, "cannot be built"),
        (json.dumps({**whole, "feature": {"function": "foible.zoo:load"}}), plain, "built|fitted"),
        (json.dumps({**whole, "head": whole["feature"]}), plain, "does not hold a fitted"),
        (json.dumps(whole), {"a": torch.zeros(2)}, "does not hold a fitted"),
    ):
        told = {"foible": "detector", "schema": "1"} | ({} if held is None else {"detector": held})
        save_file(tensors, str(path), told)
        with pytest.raises(LogError, match=said):
            load(path)


def test_a_network_is_scored_without_a_trace_in_the_random_state() -> None:
    head, features = Network(width=4, epochs=1), torch.rand(20, 3)
    state = head.learn(features, torch.arange(20) % 2 == 0, 0)
    before = torch.random.get_rng_state()
    head(features, state)
    assert torch.equal(before, torch.random.get_rng_state())


def test_samples_with_nan_are_no_drift() -> None:
    x = torch.rand(20, 3)
    with pytest.raises(InputError, match="NaN"):
        foible.detect.mmd_test(x, torch.full_like(x, float("nan")))


def test_adversarials_of_another_shape_or_range_are_told() -> None:
    net, x, y, made = watch_of(n=60)
    for given, said in ((x[:9, :-1], "have shape"), (x[:9] + 3, "spans")):
        with pytest.raises(InputError, match=said):
            made.detector.fit(net, (x, y), adversarial=given)


@pytest.mark.parametrize(("n", "fpr"), [(40, 0.1), (400, 0.05), (1000, 0.01)])
def test_a_levels_interval_holds_the_true_one_as_often_as_it_says(n: int, fpr: float) -> None:
    """Scores that are uniform: the true level is 1 - fpr, what exceeds a level is 1 - it."""
    rng = torch.Generator().manual_seed(n)
    made, trials = Detector("any", Pixels(), Largest()), 1000
    held, alarms = 0, 0.0
    for scores in torch.rand(trials, n, generator=rng, dtype=torch.float64).sort(1).values:
        level = Watch(made, {"levels": scores}).threshold(fpr)
        held += level.interval[0] <= 1 - fpr <= level.interval[1]
        alarms += (1 - level.value) / trials
    assert 0.94 <= held / trials < 0.995
    assert alarms == pytest.approx((fpr * n + 1) / (n + 1), rel=0.1)


def test_the_adaptive_objective_is_its_formula(monkeypatch) -> None:
    """The margin in units of the clean one up to `safe`, and what is missing below the level."""
    scores = torch.tensor([[2.0, 1.5, 0.0], [0.0, 1.0, 0.2], [1.0, 1.1, 3.0]])
    clean = torch.tensor([[4.0, 2.0, 0.0], [1.0, 0.0, 0.0], [5.0, 1.0, 0.0]])
    seen = torch.tensor([0.9, 0.4, 0.62])
    rows = SimpleNamespace(y=torch.tensor([0, 0, 0]), target=None, scores=clean)
    monkeypatch.setattr(evading, "suspicion", lambda *_, **how: seen if how["soft"] else None)
    levels = torch.linspace(0, 1, 101).double()  # 0.8 from their first tenth to their last
    watch = Watch(Detector("any", Pixels(), Largest()), {"levels": levels})
    objective = evading.Evading(watch, 0.6, weight=3.0, safe=0.3, below=0.2)
    margin = torch.tensor([-0.5 / 2.0, 0.3, 0.3])  # 1 / 1 and 2 / 4 are more than is asked for
    hidden = torch.tensor([-0.3 / 0.8, 0.2, -0.02 / 0.8])
    got = objective(SimpleNamespace(rows=rows, scores=scores, labels=scores.argmax(1)))
    torch.testing.assert_close(got, margin + 3.0 * hidden)


def test_the_smaller_way_is_smaller() -> None:
    net, x, y, _ = watch_of(n=60)
    made = crafted(net, (x[:20], y[:20]), foible.Linf(0.2))
    far = [float((one.result.x - x[:20]).abs().max()) for one in made[:3]]
    assert far == pytest.approx([0.2, 0.05, 0.2], rel=1e-4)
