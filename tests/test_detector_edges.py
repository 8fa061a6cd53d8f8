"""Detectors at their edges: foreign files, the user's random state, samples that are no numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_detect import watch_of

import foible
from foible.core.errors import InputError, LogError
from foible.detect import Network, load


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
