"""Detectors at their edges: foreign files, the user's random state, samples that are no numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_detect import watch_of

import foible
from foible.core.errors import InputError, LogError
from foible.detect import Detector, Largest, Network, Watch, load
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
