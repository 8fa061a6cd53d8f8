"""Choose the 1,000 bundled test images of Fashion-MNIST and write them with their indices.

    python recipes/make_sample.py

Balanced: 100 images a class, drawn without replacement. The order is by rounds of ten, one image of
each class a round, so that the first 10 k images are balanced too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from foible.zoo import fashion_mnist  # noqa: E402

SEED = 0
PER_CLASS = 100
NAME = "fashion_mnist_1000"


def choose(labels: np.ndarray) -> np.ndarray:
    """Return the indices of the chosen images, in their order."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    classes = np.unique(labels)
    drawn = np.stack(
        [rng.choice(np.flatnonzero(labels == c), PER_CLASS, replace=False) for c in classes]
    )
    return np.concatenate([drawn[rng.permutation(len(classes)), i] for i in range(PER_CLASS)])


def make(folder: Path | None, out: Path) -> None:
    x, y = fashion_mnist("test", folder)
    index = choose(y.numpy())
    images = (x[index, 0].numpy() * 255).round().astype(np.uint8)
    path = out / f"{NAME}.npz"
    np.savez_compressed(
        path, x=images, y=y[index].numpy().astype(np.uint8), index=index.astype(np.uint16)
    )
    notes = {
        "command": "python recipes/make_sample.py",
        "seed": SEED,
        "source": "Fashion-MNIST, test set (10,000 images)",
        "licence": "MIT, Zalando SE, see LICENSE",
        "images": len(index),
        "per_class": PER_CLASS,
        "arrays": "x uint8 (1000, 28, 28), y uint8 (1000,), index uint16 (1000,) in the test set",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (out / f"{NAME}.json").write_text(json.dumps(notes, indent=2) + "\n")
    print(json.dumps(notes, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "src/foible/zoo/images")
    arguments = parser.parse_args()
    make(arguments.data, arguments.out)
