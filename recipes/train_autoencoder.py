"""Train the bundled autoencoder and write its weights with the figures beside them.

    python recipes/train_autoencoder.py

Plain torch on purpose, as in train_bundled.py: mean squared error on the 60,000 training images,
nothing else. It is what the autoencoder term of attacks measures with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from foible.zoo.fashion import fashion_mnist  # noqa: E402
from foible.zoo.networks import autoencoder  # noqa: E402

SEED = 0
BATCH = 128
EPOCHS = 6
RATE = 3e-3


def residual(net: torch.nn.Module, x: torch.Tensor) -> float:
    """Return the mean squared distance of an image to its reconstruction, summed over pixels."""
    with torch.no_grad():
        gaps = [(net(part) - part).square().flatten(1).sum(1) for part in x.split(500)]
    return float(torch.cat(gaps).mean())


def train(folder: Path | None, out: Path) -> None:
    torch.manual_seed(SEED)
    net = autoencoder()
    x, _ = fashion_mnist("train", folder)
    rng = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.Adam(net.parameters(), RATE)
    total, seen, started = EPOCHS * math.ceil(len(x) / BATCH), 0, time.time()
    for epoch in range(EPOCHS):
        for batch in torch.randperm(len(x), generator=rng).split(BATCH):
            warm = min(1.0, seen / 200)
            optimiser.param_groups[0]["lr"] = (
                RATE * warm * 0.5 * (1 + math.cos(math.pi * seen / total))
            )
            optimiser.zero_grad()
            F.mse_loss(net(x[batch]), x[batch]).backward()
            optimiser.step()
            seen += 1
        print(f"epoch {epoch + 1}/{EPOCHS} {time.time() - started:.0f} s", flush=True)
    net.requires_grad_(False)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "autoencoder.safetensors"
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, str(path))
    tx, _ = fashion_mnist("test", folder)
    noise = (torch.rand(tx.shape, generator=rng) * 2 - 1).sign() * 0.1
    figures = {
        "command": "python recipes/train_autoencoder.py",
        "seed": SEED,
        "epochs": EPOCHS,
        "batch": BATCH,
        "lr": RATE,
        "parameters": sum(p.numel() for p in net.parameters()),
        "test_residual": residual(net, tx),
        "test_residual_of_a_black_image": float(tx.square().flatten(1).sum(1).mean()),
        "test_residual_noise_0.1": residual(net, (tx + noise).clamp(0, 1)),
        "minutes": round((time.time() - started) / 60, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (out / "autoencoder.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the four files")
    parser.add_argument("--out", type=Path, default=ROOT / "src/foible/zoo/weights")
    arguments = parser.parse_args()
    train(arguments.data, arguments.out)
