"""Integrated gradients beside captum, completeness, memory, stability, and maps as directions.

python benchmarks/explanations.py [--quick] [--only captum,stability] [--threads 2]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from common import (
    EPS,
    MODELS,
    STEPS,
    Section,
    Setting,
    alternate,
    command_line,
    finish,
    header,
    images,
    load,
    percent,
    ratio,
    setting,
    spread,
)
from torch import Tensor, nn

import foible
from foible.explain import Explanation, completeness
from foible.models import TorchModel, as_model, softplus_twin

SECTIONS = ("captum", "memory", "completeness", "stability", "follow", "claims")
BAR = ("what", "measured", "bar", "verdict")
BATCH = 64
TOP = 100
MEMORY = """
import sys
from pathlib import Path
import torch, foible
from foible.models import as_model

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024

who, steps, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if who == "captum":
    from captum.attr import IntegratedGradients
torch.set_num_threads(threads)
x, y = foible.zoo.sample()
x, y = x[:64].double(), y[:64]
net = foible.zoo.load("standard").double()
model = as_model(net)
width = model.chunk(x)
net(x[:2])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (Linux)
before = status("VmRSS")
if who == "foible":
    maps = foible.explain.integrated_gradients(steps=steps)(model, x, y)
else:
    maps = IntegratedGradients(net).attribute(
        x, 0.0, y, n_steps=steps, method="riemann_middle", internal_batch_size=width
    )
assert bool(torch.isfinite(maps).all())
print(status("VmHWM") - before, status("VmHWM"))
"""


def captum(how: Setting, table: Section) -> None:
    """The same sum in float64, and the time of both at one batch budget."""
    from captum.attr import IntegratedGradients

    steps = 50 if how.quick else 200
    for name in MODELS:
        print(f"captum, {name} model", flush=True)
        x, y = images(BATCH)
        x = x.double()
        net = load(name, torch.float64).requires_grad_(False)
        model = as_model(net)
        explain, reference = foible.explain.integrated_gradients(steps=steps), IntegratedGradients
        width = model.chunk(x)
        ours = partial(explain, model, x, y)
        theirs = partial(
            reference(net).attribute, x, 0.0, y,
            n_steps=steps, method="riemann_middle", internal_batch_size=width,
        )  # fmt: skip
        wanted = theirs()
        gap, size = float((ours() - wanted).abs().max()), float(wanted.abs().max())
        what = f"largest difference of any value, {BATCH} images, {steps} steps; largest value "
        table.bar(f"captum-agreement-{name}", what + f"{size:.2f}", gap, "<=", 1e-5)
        times = alternate({"foible": ours, "captum": theirs}, how.runs, how.now)
        what = f"time foible / captum, at most {width} samples a forward "
        what += f"(rounds: {spread(times, 'foible', 'captum')}; "
        what += f"{statistics.median(times['foible']):.2f} s)"
        table.bar(f"captum-time-{name}", what, ratio(times, "foible", "captum"), "<=", 1.1)


def memory(how: Setting, table: Section) -> None:
    """Peak memory of 1,000 steps at batch 64, each in a process of its own."""
    print("memory", flush=True)
    steps = 100 if how.quick else 1000
    for who in ("foible", "captum"):
        command = [sys.executable, "-c", MEMORY, who, str(steps), str(torch.get_num_threads())]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        what = f"{who}: integrated gradients, {steps} steps, batch {BATCH}, float64"
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            table.add(f"memory-{who}", f"{what}: {reason}", "not measured", "**missed**")
            continue
        rise, peak = map(float, done.stdout.split())
        table.add(f"memory-{who}", what, f"+{rise:.0f} MiB, peak {peak:.0f} MiB", "finished")


def residuals(model: TorchModel, x: Tensor, steps: int) -> Tensor:
    """The relative completeness residual (B,) of the predicted class."""
    with torch.no_grad():
        target = torch.cat([model(some).argmax(1) for some in x.split(500)])
    explainer = foible.explain.integrated_gradients(steps=steps)
    return completeness(explainer, model, x, target, explainer(model, x, target))


def complete(how: Setting, table: Section) -> None:
    """How far the map's sum is from the difference of the outputs."""
    x = images(how.samples)[0].double()
    few = x[: max(20, how.samples // 5)]
    coarse, fine = 200, 1000
    for name in MODELS:
        print(f"completeness, {name} model", flush=True)
        model = as_model(load(name, torch.float64))
        near = residuals(model, x, coarse)
        row = f"completeness-{coarse}-{name}"
        what = f"{len(x)} images, {coarse} steps: relative residual"
        table.bar(f"{row}-median", f"{what}, median", float(near.median()), "<=", 0.01)
        worst = float(near.max())
        table.bar(f"{row}-worst", f"{what}, worst", worst, "<=", 0.03)
        nearer, near = residuals(model, few, fine), near[: len(few)]
        row = f"completeness-{fine}-{name}"
        what = f"{len(few)} images, {fine} steps over {coarse}: quotient of residuals"
        share = float(nearer.median() / near.median())
        table.bar(f"{row}-median", f"{what}, median ({nearer.median():.1e})", share, "<=", 1.0)
        share = float(nearer.max() / near.max())
        table.bar(f"{row}-worst", f"{what}, worst ({nearer.max():.1e})", share, "<=", 1.0)
        some = few[:50]
        smooth = softplus_twin(model, beta=1)
        rough, twin = residuals(smooth, some, coarse), residuals(smooth, some, fine)
        row, what = f"completeness-softplus-{name}", f"softplus twin (beta 1), {len(some)} images"
        middle, worst = float(twin.median()), float(twin.max())
        table.bar(f"{row}-median", f"{what}, {fine} steps, median", middle, "<=", 1e-6)
        table.bar(f"{row}-worst", f"{what}, {fine} steps, worst", worst, "<=", 1e-6)
        # Halving the step quarters the midpoint rule's error on a smooth net: 5^2 is expected.
        what += f": the median residual falls, from {coarse} to {fine} steps, by a factor of"
        table.bar(f"{row}-order", what, float(rough.median()) / middle, ">=", 20)
    torch_linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double()
    with torch.no_grad():
        weights = torch.randn(10, 784, generator=torch.Generator().manual_seed(0))
        torch_linear[1].weight.copy_(weights)
    left = residuals(as_model(torch_linear), x, coarse)
    what = f"linear model, {len(x)} images, {coarse} steps: worst residual"
    table.bar("completeness-linear", what, float(left.max()), "<=", 1e-10)


def explainers() -> dict[str, Explanation]:
    e = foible.explain
    return {
        "saliency": e.saliency(),
        "gradient_x_input": e.gradient_x_input(),
        "smoothgrad": e.smoothgrad(),
        "integrated_gradients": e.integrated_gradients(),
        "lime": e.lime(),
    }


def stability(how: Setting, table: Section) -> None:
    """How much of a map stays under PGD, and under noise of the same size."""
    print("stability", flush=True)
    x, y = images(min(how.samples, 60 if how.quick else 300))
    threat = foible.Linf(EPS)
    pairs: dict[str, tuple[TorchModel, Tensor, Tensor, Tensor, Tensor]] = {}
    for name in MODELS:
        model = as_model(load(name))
        attacked = foible.attacks.pgd(threat, STEPS)(model, x, y)
        noise = foible.attacks.random_noise(threat)(model, x, y)
        right = attacked.attacked
        pairs[name] = (model, x[right], y[right], attacked.x[right], noise.x[right])
    for row, explainer in explainers().items():
        figures: dict[str, list[str]] = {"topk": [], "rank": []}
        for model, clean, labels, attacked_x, noisy in pairs.values():
            for other in (attacked_x, noisy):
                pair = (clean, other)
                found = foible.explain.stability(explainer, model, pair, labels, k=TOP)
                for kind, values in found.items():
                    figures[kind].append(interval(values))
        table.add(f"stability-{row}", f"{row}: top {TOP} in common", *figures["topk"])
        table.add(f"stability-{row}-rank", f"{row}: rank correlation", *figures["rank"])


def interval(values: Tensor) -> str:
    """The mean with its 95 % interval."""
    from foible.parts.statistics import mean_interval

    found = mean_interval(values)
    if found is None:
        return "not measured"
    mean, low, high = found
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def follow(how: Setting, table: Section) -> None:
    """Accuracy after one step along each map: an explanation as a direction."""
    print("follow", flush=True)
    x, y = images(how.samples)
    sizes = {"standard": 0.05, "hardened": 0.15}
    models = {name: as_model(load(name)) for name in MODELS}
    a = foible.attacks
    rows = [("random", "random signs (control)", lambda t: a.random_noise(t))]
    rows += [
        (key, f"one step along {key}", lambda t, e=e: a.fgsm(t, direction=e))
        for key, e in explainers().items()
    ]
    rows += [("pgd", f"PGD, {STEPS} steps", lambda t: a.pgd(t, STEPS))]
    for key, what, make in rows:
        results = [make(foible.Linf(sizes[n]))(models[n], x, y) for n in MODELS]
        cells = [percent(r.robust_accuracy or 0.0) for r in results]
        table.add(f"follow-{key}", what, *cells)


def claims(how: Setting, table: Section) -> None:
    """What the survey says of explanations as directions, and of saturated gradients."""
    print("claims", flush=True)
    x, y = images(min(how.samples, 200))
    x, goal = x.double(), (y + 1) % 10
    saliency = foible.explain.saliency()
    for name in MODELS:
        net = load(name, torch.float64)
        maps = torch.stack([saliency(net, x, k) for k in range(10)], 1)
        leaf = x.clone().requires_grad_()
        scores = net(leaf)
        share = scores.detach().softmax(1)
        mean = (share[:, :, None, None, None] * maps).sum(1)
        explained = maps[torch.arange(len(x)), goal] - mean
        loss = F.cross_entropy(scores, goal, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        cosine = F.cosine_similarity(-grad.flatten(1), explained.flatten(1))
        what = f"{name}, {len(x)} images: smallest cosine of minus the gradient of the target's "
        what += "loss and the map of its log-probability, made of saliency maps; its distance to 1"
        table.bar(f"s7-direction-{name}", what, float((1 - cosine).abs().max()), "<=", 1e-5)
        (loss_grad,) = torch.autograd.grad(
            F.cross_entropy(scores, y, reduction="sum"), leaf, retain_graph=True
        )
        chosen = scores.softmax(1).gather(1, y[:, None]).sum()
        (chance_grad,) = torch.autograd.grad(chosen, leaf)
        real = (loss_grad != 0) & (chance_grad != 0)
        same = (loss_grad.sign() == -chance_grad.sign())[real].double().mean()
        what = f"{name}: share of non-zero entries where the loss's gradient has the opposite "
        what += "sign of the probability's (Eq. 8)"
        table.bar(f"s7-signs-{name}", what, float(same), ">=", 1.0)
    saturated(table)


class Saturated(nn.Module):
    """Two classes: 1 - relu(1 - x), flat above x = 1, against one half."""

    def forward(self, x: Tensor) -> Tensor:
        high = 1 - torch.relu(1 - x[:, :1])
        return torch.cat([high, torch.full_like(high, 0.5)], 1)


def saturated(table: Section) -> None:
    model = foible.wrap(Saturated(), bounds=(0, 3))
    x, y = torch.full((1, 1), 2.0, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    e, a = foible.explain, foible.attacks
    slope = float(e.saliency()(model, x, y).abs().max())
    table.bar("s8-saturation-gradient", "1 - relu(1 - x) at 2: gradient", slope, "<=", 0.0)
    total = float(e.integrated_gradients()(model, x, y).sum())
    what = f"integrated gradients give {total:.6f}, the difference is 1: distance"
    table.bar("s8-saturation-ig", what, abs(total - 1), "<=", 1e-6)
    step = a.fgsm(foible.Linf(2.0))(model, x, y).success_rate
    cut = a.ig_deletion()(model, x, y).success_rate
    what = f"success of deletion along integrated gradients (FGSM at eps 2: {step:.0f})"
    table.bar("s8-saturation-deletion", what, (cut or 0.0) - (step or 0.0), ">=", 1.0)


def main() -> None:
    args = command_line(__doc__, "explanations", SECTIONS, runs=9)
    # captum warns of inputs that do not require gradients yet; it sets that itself.
    warnings.filterwarnings("ignore", module="captum")
    how = setting(args)
    quick = ", quick" if how.quick else ""
    tables = {
        "captum": Section(
            "captum",
            "Integrated gradients beside captum",
            BAR,
            'captum `IntegratedGradients`, method="riemann_middle", internal_batch_size as '
            f"foible's; float64; medians of {how.runs} interleaved runs ({args.clock} clock).",
        ),
        "memory": Section(
            "memory",
            "Memory",
            ("what", "measured", "verdict"),
            "The rise of the peak resident memory over the process before, in a process each.",
        ),
        "completeness": Section(
            "completeness",
            "Completeness",
            BAR,
            "|sum of the map - (F(x) - F(0))| / |F(x) - F(0)|, logit of the predicted class, "
            "midpoint rule, float64.",
        ),
        "stability": Section(
            "stability",
            "Stability of maps",
            ("what", *(f"{n}, {kind}" for n in MODELS for kind in ("PGD", "noise"))),
            f"Maps of the true label before and after PGD-{STEPS} at eps {EPS:g} (Linf), and after "
            f"random signs of that size; mean and 95 % interval over correct images. By chance "
            f"{TOP / 784:.3f} of the top {TOP} are shared.",
        ),
        "follow": Section(
            "follow",
            "Maps as directions",
            ("what", "standard, eps 0.05", "hardened, eps 0.15"),
            f"Accuracy on {how.samples} images after one step of equal size in Linf.",
        ),
        "claims": Section("claims", "What the survey says of explanations", BAR),
    }
    work = {
        "captum": captum,
        "memory": memory,
        "completeness": complete,
        "stability": stability,
        "follow": follow,
        "claims": claims,
    }
    for name in args.chosen:
        work[name](how, tables[name])
    head = header(
        "Explanations",
        ("captum",),
        "foible's explainers beside captum, against algebra, and under attack" + quick + ".",
    )
    finish(args, head, [tables[name] for name in args.chosen], SECTIONS)


if __name__ == "__main__":
    main()
