"""Detectors: heads are scikit-learn's, levels hold, files are safe, an attack that knows wins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import foible
from foible.core.errors import InputError, LogError
from foible.detect import (
    Detector,
    Feature,
    Forest,
    Largest,
    Logistic,
    Network,
    Svm,
    adaptive,
    drift,
    evaluate,
    guard,
    load,
    mmd_test,
)
from foible.detect.base import part_of
from foible.detect.features import Pixels, Squeezed

ROOT = Path(__file__).resolve().parents[1]


def clouds(n: int = 60, size: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of two kinds, and which are bad."""
    rng = torch.Generator().manual_seed(seed)
    bad = torch.arange(n) % 3 == 0
    return torch.randn(n, size, generator=rng) * 2 + bad[:, None] * 1.5 + 3, bad


def two(n: int = 200) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model on inputs in a box, with three classes, and inputs that it gets right."""
    rng = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(3, 8, generator=rng) * 2)
        net[1].bias.zero_()
        x = torch.rand(n, 8, generator=rng)
        y = net(x).argmax(1)
    return net, x, y


# --- heads


def test_heads_are_those_of_scikit_learn() -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    features, bad = clouds()
    other, _ = clouds(25, seed=7)
    mean, spread = features.double().mean(0), features.double().std(0, unbiased=False)
    data, asked = (((f.double() - mean) / spread).numpy() for f in (features, other))
    for head, peer in (
        (Logistic(0.5), LogisticRegression(C=0.5, class_weight="balanced", max_iter=2000)),
        (Svm(2.0), SVC(C=2.0, gamma=0.25, class_weight="balanced")),
    ):
        state = head.learn(features, bad, 0)
        wanted = peer.fit(data, bad.numpy()).decision_function(asked)
        np.testing.assert_allclose(head(other, state).numpy(), wanted, rtol=1e-6, atol=1e-8)
    forest = RandomForestClassifier(30, class_weight="balanced", random_state=3)
    forest.fit(features.numpy(), bad.numpy())
    state = Forest(30).learn(features, bad, 3)
    got = Forest(30)(other, state).numpy()
    np.testing.assert_allclose(got, forest.predict_proba(other.numpy())[:, 1], atol=1e-12)
    soft = Forest().soft(other, state)
    plain = Logistic()(other, part_of(state, "soft"))
    assert torch.equal(soft, plain) and soft.std() > 0.1


def test_the_largest_feature_is_told_in_clean_spreads() -> None:
    features, bad = clouds()
    state = Largest().learn(features, bad, 0)
    good = features[~bad].double()
    z = (features.double() - good.mean(0)) / good.std(0, unbiased=False)
    torch.testing.assert_close(Largest("high")(features, state), z.amax(1))
    torch.testing.assert_close(Largest("low")(features, state), (-z).amax(1))
    torch.testing.assert_close(Largest("both")(features, state), z.abs().amax(1))
    assert torch.equal(Largest(normed=False)(features, {}), features.amax(1))
    with pytest.raises(InputError, match="sided is 'up'"):
        Largest("up")


def test_a_network_learns_what_a_line_parts_whatever_its_shape() -> None:
    for shape in ((1, 6, 6), (5,)):
        rng = torch.Generator().manual_seed(2)
        bad = torch.arange(80) % 4 == 0  # three to one: the rarer kind counts as much
        data = torch.randn(80, *shape, generator=rng) + 2 * bad.view(-1, *[1] * len(shape))
        head = Network(8, 15)
        state = head.learn(data, bad, 0)
        scores = head(data, state)
        assert float(((scores > 0) == bad).double().mean()) > 0.9
        assert all(torch.equal(v, w) for v, w in zip(
            state.values(), head.learn(data, bad, 0).values(), strict=True))  # fmt: skip
    leaf = data.requires_grad_()
    assert head(leaf, state).requires_grad


# --- fitting, levels, files


def watch_of(head=None, n: int = 200):
    net, x, y = two(n)
    attack = foible.attacks.pgd(foible.Linf(0.2), 5)
    made = Detector("mine", Pixels(), head or Logistic()).fit(net, (x, y), attack=attack)
    return net, x, y, made


def test_levels_are_quantiles_of_held_out_inputs_that_are_right() -> None:
    net, x, y = two(300)
    wrong = (y + 1) % 3
    mixed = torch.where(torch.arange(300) < 60, wrong, y)
    attack = foible.attacks.pgd(foible.Linf(0.2), 5)
    watch = Detector("mine", Pixels(), Logistic()).fit(net, (x, mixed), attack=attack)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    out = order[180:].sort().values
    held = x[out[out >= 60]]
    scores = watch.score(net, held).double().sort().values
    torch.testing.assert_close(watch.state["levels"], scores, rtol=0, atol=1e-12)
    level = watch.threshold(0.1)
    assert level.n == len(held) and float((scores > level.value).double().mean()) <= 0.1
    above = int((scores > level.value).sum())
    assert above == int(0.1 * len(held))
    assert level.interval[0] < level.value < level.interval[1]
    assert watch.threshold(0.001).interval[1] == float("inf")
    with pytest.raises(InputError, match="fpr=0"):
        watch.threshold(0)


def test_only_adversarials_that_truly_fool_are_learnt_from() -> None:
    net, x, y = two()
    seen = {}

    class Spy(Logistic):
        def learn(self, features, bad, seed):
            seen["bad"] = features[bad]
            return super().learn(features, bad, seed)

    Detector("mine", Pixels(), Spy()).fit(net, (x, y), foible.attacks.pgd(foible.Linf(0.05), 5))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:120].sort().values
    bad = seen["bad"]
    assert 5 <= len(bad) < 120
    for one in bad:
        near = (x[order] - one).abs().amax(1).argmin()
        assert int(net(one[None]).argmax(1)) != int(y[order][near])
    with pytest.raises(InputError, match=r"adversarials fool the model, too few"):
        Detector("m", Pixels(), Logistic()).fit(net, (x, y), foible.attacks.pgd(foible.Linf(1e-6)))
    with pytest.raises(InputError, match="learns from adversarials: pass attack="):
        Detector("m", Pixels(), Logistic()).fit(net, (x, y))
    with pytest.raises(InputError, match="ten inputs"):
        Detector("m", Pixels(), Logistic()).fit(net, (x[:5], y[:5]))


def test_a_saved_watch_gives_the_same_bits_in_a_fresh_process(tmp_path: Path) -> None:
    heads = [Logistic(), Svm(), Forest(10), Network(4, 2), Largest()]
    made = [watch_of(head, 60) for head in heads]
    net, x = made[0][0], made[0][1]
    for i, (*_, watch) in enumerate(made):
        watch.save(tmp_path / f"watch{i}")
    torch.save({"net": net.state_dict(), "x": x}, tmp_path / "given.pt")
    code = (
        "import sys, torch\nfrom torch import nn\nimport foible\n"
        "given = torch.load('given.pt', weights_only=True)\n"
        "net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))\n"
        "net.load_state_dict(given['net'])\n"
        "held = [foible.detect.load(f'watch{i}') for i in range(5)]\n"
        "torch.save([w.score(net, given['x']) for w in held], 'scores.pt')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=120, cwd=tmp_path)
    there = torch.load(tmp_path / "scores.pt", weights_only=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for (*_, watch), scores in zip(made, there, strict=True):
        assert torch.equal(scores, watch.score(net, x)) and scores.std() > 0
    torch.set_num_threads(threads)


def test_a_file_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    _, _, _, watch = watch_of(n=60)
    path = tmp_path / "watch"
    watch.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(LogError, match="cannot be read as a detector"):
        load(path)
    save_file({"a": torch.zeros(2)}, str(path))
    with pytest.raises(LogError, match="no detector of foible's"):
        load(path)
    told = {"foible": "detector", "schema": "99", "detector": "{}"}
    save_file({"a": torch.zeros(2)}, str(path), told)
    with pytest.raises(LogError, match="schema 99"):
        load(path)
    evil = {"part": "foible.detect.watching:Detector", "name": "x", "noisy": False,
            "head": {"function": "os:system"}, "feature": {"part": "subprocess:Popen"}}  # fmt: skip
    told |= {"schema": "1", "detector": json.dumps(evil)}
    save_file({"a": torch.zeros(2)}, str(path), told)
    with pytest.raises(
        LogError, match=r"names os:system, subprocess:Popen: only parts of foible's"
    ):
        load(path)


def test_scores_do_not_depend_on_the_batch() -> None:
    net, x, _, watch = watch_of()
    whole = watch.score(net, x)
    parts = torch.cat([watch.score(net, part) for part in x.split(7)])
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)
    assert watch.score(net, x[:0]).shape == (0,)


# --- the squeezed prediction


def test_the_squeezed_feature_is_its_formula() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    rng = torch.Generator().manual_seed(3)
    x = torch.rand(5, 1, 4, 4, generator=rng, dtype=torch.float64)
    watch = Detector("s", Squeezed((1,), (2,)), Largest("high", normed=False))
    y = net(x).argmax(1)
    fitted = watch.fit(net, (x.repeat(4, 1, 1, 1), y.repeat(4)))
    from scipy.ndimage import median_filter

    p = net(x).softmax(1)
    bits = net((x >= 0.5).double()).softmax(1)
    median = torch.stack([torch.from_numpy(median_filter(one[0].numpy(), 2, mode="reflect"))[None]
                          for one in x])  # fmt: skip
    wanted = torch.stack([(p - bits).abs().sum(1), (p - net(median).softmax(1)).abs().sum(1)], 1)
    torch.testing.assert_close(fitted.score(net, x), wanted.amax(1).detach())


# --- the attack that knows


def test_the_adaptive_attack_fools_unseen_where_a_plain_one_is_seen() -> None:
    net, x, y, watch = watch_of()
    level = watch.threshold(0.05).value
    threat = foible.Linf(0.3)
    plain = foible.attacks.pgd(threat, 20)(net, x, y)
    seen = watch.score(net, plain.x[plain.success]) > level
    found = adaptive(watch, threat, steps=60)(net, x, y)
    assert float(found.success.double().mean()) > float((~seen).double().mean()) + 0.2
    won = found.success & found.attacked
    assert bool((net(found.x[won]).argmax(1) != y[won]).all())
    assert bool((watch.score(net, found.x[won]) <= level).all())
    assert float((found.x - x).abs().max()) <= 0.3 + 1e-6
    assert bool((found.forwards[won] > 2).all())


class Blind(Feature):
    differentiable = False

    def __call__(self, oracle, rows, state, draw, *, create_graph=False):
        return rows.x.flatten(1).sum(1, keepdim=True).round()


def test_a_feature_without_a_gradient_is_refused_by_name() -> None:
    net, x, y = two()
    watch = Detector("blind", Blind(), Largest()).fit(net, (x, y))
    with pytest.raises(InputError, match="blind's feature has no gradient"):
        adaptive(watch, foible.Linf(0.1))
    worth = evaluate(watch, net, (x[:40], y[:40]), foible.Linf(0.2))
    last = worth.way("adaptive")
    assert last.n == 0 and last.auc is None and last.caught == (None, None)


def test_the_four_ways_are_measured_on_what_truly_fools() -> None:
    net, _, _, watch = watch_of()
    fresh = torch.rand(120, 8, generator=torch.Generator().manual_seed(9))
    labels = net(fresh).argmax(1)
    labels[:20] = (labels[:20] + 1) % 3
    worth = evaluate(watch, net, (fresh, labels), foible.Linf(0.2), adaptive_samples=30)
    assert [w.kind for w in worth.ways] == ["same", "smaller", *["other"] * 4, "adaptive"]
    assert len(worth.clean) == 120
    same = worth.way("same")
    result = foible.attacks.pgd(foible.Linf(0.2), 40)(net, fresh, labels)
    fools = result.attacked & result.success
    assert same.n == int(fools.sum()) and same.fooled == pytest.approx(same.n / 100)
    hits = watch.score(net, result.x[fools]) > watch.threshold(0.05).value
    assert same.caught[0] == pytest.approx(float(hits.double().mean()))
    pairs = same.scores[:, None] - worth.clean[None]
    area = float((pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean())
    assert same.auc == pytest.approx(area, abs=1e-9)
    assert same.auc_interval is not None and same.auc_interval[0] < area < same.auc_interval[1]
    last = worth.way("adaptive")
    assert last.n <= 30 and last.caught[0] is not None and last.caught[0] < same.caught[0]


# --- guard and drift


def test_a_guard_abstains_above_the_level_and_says_who(tmp_path: Path) -> None:
    net, x, _, watch = watch_of()
    from dataclasses import replace

    second = replace(watch, detector=replace(watch.detector, name="other"))
    made = guard(net, [watch, second], fpr=0.1, log=tmp_path / "log.jsonl")
    assert made.levels == dict.fromkeys(("mine", "other"), watch.threshold(0.05).value)
    odd = (x + 0.3).clamp(0, 1)
    answer = made(odd)
    flagged = watch.score(net, odd) > made.levels["mine"]
    assert bool(flagged.any()) and not bool(flagged.all())
    assert torch.equal(answer.abstained, flagged)
    assert torch.equal(answer.label, net(odd).argmax(1).masked_fill(flagged, -1))
    assert answer.reasons == [["mine", "other"] if f else [] for f in flagged.tolist()]
    assert (made.asked, made.refused) == (200, int(flagged.sum()))
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert line["label"] == answer.label.tolist() and line["seconds"] > 0
    with pytest.raises(InputError, match="NaN"):
        made(torch.full((1, 8), float("nan")))
    with pytest.raises(InputError, match="one at least"):
        guard(net, [])
    with pytest.raises(InputError, match="called 'mine'"):
        guard(net, [watch, watch])


def test_the_kernel_test_is_its_formula_and_keeps_its_level() -> None:
    rng = torch.Generator().manual_seed(4)
    a, b = torch.randn(7, 2, generator=rng).double(), torch.randn(5, 2, generator=rng).double()

    def k(u: Tensor, v: Tensor) -> float:
        return float(torch.exp(-(u - v).square().sum() / (2 * 0.8**2)))

    within = sum(k(a[i], a[j]) for i in range(7) for j in range(7) if i != j) / 42
    other = sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(k(u, v) for u in a for v in b) / 35
    assert mmd_test(a, b, 10, width=0.8).mmd == pytest.approx(within + other - 2 * between)
    low = 0
    for seed in range(60):
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
        low += mmd_test(x[:20], x[20:], 99, seed=seed).p <= 0.1
    assert low <= 12  # a tenth of sixty is six; more than twelve has a chance of 0.7 %
    assert mmd_test(a, a + 5, 99).p == pytest.approx(0.01)
    with pytest.raises(InputError, match="two of each"):
        mmd_test(a[:1], b)


def test_drift_slides_over_single_inputs_whatever_the_batches() -> None:
    rng = torch.Generator().manual_seed(6)
    stream = torch.cat([torch.randn(120, 2, generator=rng), torch.randn(80, 2, generator=rng) + 3])
    reference = torch.randn(100, 2, generator=rng)
    one, two_ = drift(reference, 40, 20, 99), drift(reference, 40, 20, 99)
    for part in stream.split(7):
        one(part)
    two_(stream)
    assert one.tests == two_.tests and one.seen == 200
    assert len(one.tests) == 9  # at 40, 60, ..., 200
    assert min(t.p for t in one.tests[:4]) > 0.01 and all(t.p == 0.01 for t in one.tests[-3:])
    with pytest.raises(InputError, match="window=1"):
        drift(reference, 1)
