"""How strong every recipe is on the bundled models, and what the survey says of it."""

from __future__ import annotations

import torch
from common import EPS, MODELS, STEPS, Section, Setting, images, load, percent
from torch import Tensor, nn

import foible
from foible.attacks import Attack, Result
from foible.models import TorchModel, as_model


def pgd(eps: float = EPS, stop: str = "never") -> Attack:
    return foible.attacks.pgd(foible.Linf(eps), steps=STEPS, stop=stop)


def accuracy(net: nn.Module, x: Tensor, y: Tensor, adversarial: Tensor) -> float:
    """Accuracy under attack; what is wrong without one counts as an error, for everyone."""
    with torch.no_grad():
        return float(((net(x).argmax(1) == y) & (net(adversarial).argmax(1) == y)).float().mean())


def recipe_rows(samples: int) -> list[tuple[str, str, Attack, int]]:
    """(row, what, attack, samples); a control of equal budget follows each threat."""
    a = foible.attacks
    ball = foible.Linf(EPS)
    tries = STEPS + 1
    rows: list[tuple[str, str, Attack]] = [
        ("random-linf-1", "1 random corner (control of one step)", a.random_noise(ball)),
        ("fgsm", "FGSM", a.fgsm(ball)),
        ("r_fgsm", "R+FGSM, alpha 0.5", a.r_fgsm(ball)),
        ("smoothgrad_attack", "SmoothGrad reversed, 25 samples", a.smoothgrad_attack(ball)),
        ("bim", "BIM, 10 steps", a.bim(ball)),
        ("least_likely", "towards the least likely class", a.least_likely(ball)),
        ("mim", "MIM, 10 steps", a.mim(ball)),
        ("pgd-linf", "PGD, 40 steps", pgd()),
        ("pgd-linf-margin", "PGD, 40 steps, margin", a.pgd(ball, STEPS, objective="margin")),
        ("random-linf", f"{tries} random corners (control)", a.random_noise(ball, tries)),
    ]
    rows += [
        row
        for norm, threat in (("l2", foible.L2(1.5)), ("l1", foible.L1(20)), ("l0", foible.L0(20)))
        for row in (
            (f"pgd-{norm}", f"PGD, 40 steps, {norm} eps {threat.eps:g}", a.pgd(threat, STEPS)),
            (f"random-{norm}", f"{tries} random points (control)", a.random_noise(threat, tries)),
        )
    ]
    return [(*row, samples) for row in rows]


def recipes(how: Setting, table: Section) -> dict[str, dict[str, Result]]:
    """The robust accuracy of every recipe on both models."""
    print("recipes", flush=True)
    x, y = images(how.samples)
    models = {name: as_model(load(name)) for name in MODELS}
    kept: dict[str, dict[str, Result]] = {}
    clean = [percent(accuracy(models[n].net, x, y, x)) for n in MODELS]
    table.add("clean", "no attack", *clean, "0")
    for row, what, attack, count in recipe_rows(how.samples):
        kept[row] = {n: attack(models[n], x[:count], y[:count]) for n in MODELS}
        cost = kept[row]["hardened"]
        work = f"{float((cost.forwards + cost.backwards).double().mean()):.1f}"
        # Of the labels, not of the goal: an attack towards a class may miss it and still fool.
        some = (x[:count], y[:count])
        cells = [percent(accuracy(models[n].net, *some, kept[row][n].x)) for n in MODELS]
        table.add(row, what, *cells, work)
    deletion(how, table, models)
    return kept


def deletion(how: Setting, table: Section, models: dict[str, TorchModel]) -> None:
    """How many features have to go, in the order of which map."""
    x, y = images(min(how.samples, 500))
    e = foible.explain
    orders = (
        ("ig_deletion", "integrated gradients", None),
        ("ig_deletion-saliency", "saliency", e.saliency()),
        ("ig_deletion-random", "a random order (control)", e.random_map()),
    )
    for row, what, explainer in orders:
        cells, works = [], []
        for name in MODELS:
            result = foible.attacks.ig_deletion(explainer)(models[name], x, y)
            fell = result.attacked & result.success
            count = result.distance[fell]
            middle = f"{float(count.median()):.0f}" if len(count) else "not measured"
            cells.append(f"{middle} features, {int(fell.sum())} of {int(result.attacked.sum())}")
            works.append(float((result.forwards + result.backwards).double().mean()))
        text = f"features deleted until the label changes, by {what}: median, how many changed"
        table.add(row, text, *cells, f"{works[-1]:.1f}")


def claims(how: Setting, table: Section, kept: dict[str, dict[str, Result]]) -> None:
    """What the survey says of attacks, as figures."""
    print("claims", flush=True)
    x, y = images(how.samples)
    models = {name: as_model(load(name)) for name in MODELS}
    for row in ("fgsm", "pgd-linf", "random-linf"):
        if row not in kept:
            chosen = {r: attack for r, _, attack, _ in recipe_rows(how.samples)}[row]
            kept[row] = {n: chosen(models[n], x, y) for n in MODELS}

    def robust(row: str, name: str) -> float:
        return 100 * (kept[row][name].robust_accuracy or 0.0)

    for name in MODELS:
        tail = "" if name == "hardened" else f"-{name}"
        gap = robust("fgsm", name) - robust("pgd-linf", name)
        table.bar(
            f"s3-one-shot-vs-iterative{tail}",
            f"{name}: FGSM {robust('fgsm', name):.1f} %, PGD {robust('pgd-linf', name):.1f} %: "
            "points by which one step leaves more",
            gap,
            ">=",
            0.0,
        )
        other = next(n for n in MODELS if n != name)
        moved = kept["pgd-linf"][other].x
        transferred = 100 * accuracy(models[name].net, x, y, moved)
        table.bar(
            f"s6-white-box-vs-transfer{tail}",
            f"{name}: transferred from the {other} model {transferred:.1f} %: points by which "
            "it leaves more than white-box",
            transferred - robust("pgd-linf", name),
            ">=",
            0.0,
        )
        gap = robust("random-linf", name) - robust("pgd-linf", name)
        what = f"{name}: points by which {STEPS + 1} random corners leave more than PGD"
        table.bar(f"random-control{tail}", what, gap, ">=", 0.0)
        goal = (y + 1) % 10
        aimed = pgd()(models[name], x, y, target=goal)
        rate = 100 * (aimed.success_rate or 0.0)
        untargeted = 100 * (kept["pgd-linf"][name].success_rate or 0.0)
        table.bar(
            f"s2-targeted-vs-untargeted{tail}",
            f"{name}: PGD reaches the next class for {rate:.1f} %, any class for "
            f"{untargeted:.1f} %: points between",
            untargeted - rate,
            ">=",
            0.0,
        )
