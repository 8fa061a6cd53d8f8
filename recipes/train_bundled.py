"""Train the two bundled models and write their weights with the figures beside them.

    python recipes/train_bundled.py standard
    python recipes/train_bundled.py hardened

Plain torch on purpose: a bundled model must not depend on the code that it is used to test.
The hardened model is trained on PGD adversarials only (Madry et al. 2018, survey Eq. 16).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from foible.zoo.networks import small_cnn  # noqa: E402

SEED = 0
EPS = 0.1
BATCH = 256
# Stages run one after the other, each from the averaged weights of the one before with a fresh
# optimiser. A net this small underfits adversarial training: after 15 epochs with augmentation
# it was at 83.4 % clean, so it ends on four epochs without.
SETTINGS: dict[str, list[dict[str, float]]] = {
    "standard": [{"epochs": 20, "lr": 2e-3, "attack_steps": 0, "augment": True}],
    "hardened": [
        {"epochs": 15, "lr": 2e-3, "attack_steps": 7, "augment": True},
        {"epochs": 4, "lr": 1e-3, "attack_steps": 7, "augment": False},
    ],
}


def read(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    x = np.frombuffer(images, np.uint8).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return torch.from_numpy(x), torch.from_numpy(np.frombuffer(labels, np.uint8).astype(np.int64))


def augment(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Flip half of the images and shift each by up to one pixel."""
    flip = torch.rand(len(x), generator=rng) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    padded = F.pad(x, (1, 1, 1, 1))
    dy, dx = torch.randint(0, 3, (2, len(x)), generator=rng)
    rows = (dy[:, None] + torch.arange(28))[:, :, None]
    cols = (dx[:, None] + torch.arange(28))[:, None, :]
    return padded[torch.arange(len(x))[:, None, None], 0, rows, cols].unsqueeze(1)


def craft(
    net: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    steps: int,
    step: float,
    rng: torch.Generator,
) -> torch.Tensor:
    """PGD in the eps ball from a uniform start; the parameters get no gradient."""
    delta = (torch.rand(x.shape, generator=rng) * 2 - 1) * EPS
    adv = (x + delta).clamp(0, 1)
    for _ in range(steps):
        adv.requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(net(adv), y, reduction="sum"), adv)
        adv = adv.detach() + step * g.sign()
        adv = torch.minimum(torch.maximum(adv, x - EPS), x + EPS).clamp(0, 1)
    return adv.detach()


def accuracy(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        hits = [(net(a).argmax(1) == b).sum() for a, b in zip(x.split(1000), y.split(1000))]
    return float(sum(hits)) / len(x)


def stage(net: torch.nn.Module, data: tuple, settings: dict[str, float], number: int) -> None:
    """Train for some epochs and leave the exponential average of the weights in the net."""
    x, y = data
    rng = torch.Generator().manual_seed(SEED + number)
    average = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.Adam(net.parameters(), lr=settings["lr"], weight_decay=1e-5)
    epochs, steps = int(settings["epochs"]), math.ceil(len(x) / BATCH)
    started, seen = time.time(), 0
    for epoch in range(epochs):
        for batch in torch.randperm(len(x), generator=rng).split(BATCH):
            warm = min(1.0, seen / (0.5 * steps))
            optimiser.param_groups[0]["lr"] = (
                settings["lr"] * warm * 0.5 * (1 + math.cos(math.pi * seen / (epochs * steps)))
            )
            a, b = x[batch], y[batch]
            if settings["augment"]:
                a = augment(a, rng)
            if settings["attack_steps"]:
                net.requires_grad_(False)
                a = craft(net, a, b, int(settings["attack_steps"]), 0.025, rng)
                net.requires_grad_(True)
            optimiser.zero_grad()
            F.cross_entropy(net(a), b).backward()
            optimiser.step()
            seen += 1
            with torch.no_grad():
                decay = min(0.998, seen / (seen + 10))
                for mean, p in zip(average, net.parameters()):
                    mean.lerp_(p, 1 - decay)
        print(
            f"stage {number + 1} epoch {epoch + 1}/{epochs} {time.time() - started:.0f} s",
            flush=True,
        )
    with torch.no_grad():
        for mean, p in zip(average, net.parameters()):
            p.copy_(mean)


def train(name: str, folder: Path, out: Path, resume: Path | None) -> None:
    torch.manual_seed(SEED)
    net = small_cnn()
    stages = list(enumerate(SETTINGS[name]))
    if resume is not None:
        net.load_state_dict(load_file(str(resume)))
        stages = stages[-1:]
    data = read(folder, "train")
    started = time.time()
    for number, settings in stages:
        stage(net, data, settings, number)
        net.requires_grad_(False)
        out.mkdir(parents=True, exist_ok=True)
        draft = out / f"{name}.stage{number + 1}.safetensors"
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, str(draft))
        net.requires_grad_(True)
    net.requires_grad_(False)
    tx, ty = read(folder, "t10k")
    rng = torch.Generator().manual_seed(SEED)
    adv = craft(net, tx[:1000], ty[:1000], 40, 0.00625, rng)
    path = out / f"{name}.safetensors"
    draft.replace(path)
    figures = {
        "command": f"python recipes/train_bundled.py {name}",
        "seed": SEED,
        "stages": SETTINGS[name],
        "batch": BATCH,
        "test_accuracy": accuracy(net, tx, ty),
        "pgd40_eps_0.1_first_1000": accuracy(net, adv, ty[:1000]),
        "minutes": round((time.time() - started) / 60, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (out / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SETTINGS))
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=ROOT / "src/foible/zoo/weights")
    parser.add_argument("--resume", type=Path, help="weights of the last but one stage")
    arguments = parser.parse_args()
    train(arguments.name, arguments.data, arguments.out, arguments.resume)
