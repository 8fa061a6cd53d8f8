"""Train the bundled masking model of the standard model; the figures go beside its weights.

    python recipes/train_masks.py

Training images only, without their labels. The figures are of the last 200 of the 10,000 test
images; benchmarks/masks.py measures on the bundled sample.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from foible import explain, zoo  # noqa: E402
from foible.core.progress import listening  # noqa: E402

SEED = 0
IMAGES = 20_000
EPOCHS = 8


def train(folder: Path | None, out: Path) -> None:
    net, (x, _) = zoo.load("standard"), zoo.fashion_mnist("train", folder)
    started, seen = time.time(), 0

    def tell(rows: int) -> None:
        nonlocal seen
        before, seen = seen, seen + rows
        if before // IMAGES < seen // IMAGES:
            print(f"epoch {seen // IMAGES}/{EPOCHS} {time.time() - started:.0f} s", flush=True)

    with listening(tell):
        masks = explain.train_masks(net, x[:IMAGES], EPOCHS, seed=SEED)
    minutes, cpu = (time.time() - started) / 60, time.process_time() / 60
    out.mkdir(parents=True, exist_ok=True)
    path = out / "masks_standard.safetensors"
    masks.save(path)
    tx, _ = (t[-200:] for t in zoo.fashion_mnist("test", folder))
    with torch.no_grad():
        y = net(tx).argmax(1)
    maps = masks(net, tx, y)
    figures = {
        "command": "python recipes/train_masks.py",
        "seed": SEED,
        "images": IMAGES,
        "epochs": EPOCHS,
        "area": float(maps.mean()),
        "deletion_black": explain.deletion(56, 0.0)(net, tx, maps, y).mean[0],
        "deletion_blur": explain.deletion(56, "blur")(net, tx, maps, y).mean[0],
        "minutes": round(minutes, 1),
        "cpu_minutes": round(cpu, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (out / "masks_standard.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the four files")
    parser.add_argument("--out", type=Path, default=ROOT / "src/foible/explain/weights")
    arguments = parser.parse_args()
    train(arguments.data, arguments.out)
