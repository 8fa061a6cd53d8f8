"""What ships inside the package: two trained models and 1,000 test images."""

from __future__ import annotations

import hashlib
import io
import json
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import nn

from foible.core.errors import InputError
from foible.zoo.networks import autoencoder, small_cnn

CLASSES: tuple[str, ...] = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""The ten classes of Fashion-MNIST; the label of a class is its place here."""

MODELS: tuple[str, ...] = ("standard", "hardened")
WEAK: tuple[str, ...] = ("single_step", "distilled")
"""Trained defences that are known to be broken; `zoo.weak` has those that need no training."""
AUTOENCODERS: tuple[str, ...] = ("autoencoder",)
SAMPLE = "fashion_mnist_1000"


def load(name: str) -> nn.Module:
    """Return a bundled model with its trained weights, in eval mode, on the CPU.

    Both are `small_cnn` networks for Fashion-MNIST images (B, 1, 28, 28) in [0, 1]; they return
    logits (B, 10). ``"standard"`` was trained plainly. ``"hardened"`` was trained on PGD
    adversarials of size 0.1 in Linf (Madry et al., *Towards deep learning models resistant to
    adversarial attacks*, 2018). Two are weak defences of half the width, to try checks on:
    ``"single_step"`` was trained on FGSM adversarials of size 0.3 (survey, Eq. 15), which hides
    its gradients from one step and from no other attack; ``"distilled"`` at temperature 100
    (Papernot et al. 2016), which PGD on the margin or the DLR loss breaks. ``"autoencoder"`` is no
    classifier: it gives each image back as well as its narrow middle lets it, and so tells how far
    an image is from all garments (`foible.attacks.autoencoder_penalty`). Each call builds a new
    module. Accuracy, seed and the command that made the weights stand in the JSON file beside them.

    Raises `InputError` for an unknown name and for weights that do not match their checksum.

    >>> import torch
    >>> net = load("standard")
    >>> net.training, net(torch.zeros(2, 1, 28, 28)).shape
    (False, torch.Size([2, 10]))
    """
    if name not in MODELS + WEAK + AUTOENCODERS:
        known = ", ".join(map(repr, MODELS + WEAK + AUTOENCODERS))
        raise InputError(f"there is no bundled model {name!r}; choose one of: {known}")
    from safetensors.torch import load as parse

    if name in AUTOENCODERS:
        net = autoencoder()
    else:
        net = small_cnn(len(CLASSES), width=16 if name in WEAK else 32)
    net.load_state_dict(parse(_checked("weights", name, "safetensors")))
    return net.eval()


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 1,000 bundled test images of Fashion-MNIST and their labels.

    x is float32 (1000, 1, 28, 28) in [0, 1], y is int64 (1000,) and indexes `CLASSES`. There are
    100 images of each class, in rounds of ten, so that x[:10 * k] is balanced too. Source: Xiao,
    Rasul and Vollgraf, *Fashion-MNIST*, 2017 (MIT licence, beside the file).

    Raises `InputError` when the file does not match its checksum.

    >>> x, y = sample()
    >>> x.shape, sorted(y[:10].tolist())
    (torch.Size([1000, 1, 28, 28]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    arrays = np.load(io.BytesIO(_checked("images", SAMPLE, "npz")), allow_pickle=False)
    x = torch.from_numpy(arrays["x"]).unsqueeze(1).float() / 255
    return x, torch.from_numpy(arrays["y"]).long()


def notes(folder: str, name: str) -> dict[str, Any]:
    """Return the JSON notes of a bundled file: how it was made, its figures and its sha256.

    `folder` is ``"weights"`` or ``"images"``, `name` the file's name without its ending.

    >>> notes("weights", "standard")["seed"]
    0
    """
    path = files("foible.zoo").joinpath(folder, f"{name}.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _checked(folder: str, name: str, ending: str) -> bytes:
    path = files("foible.zoo").joinpath(folder, f"{name}.{ending}")
    try:
        data, wanted = path.read_bytes(), notes(folder, name)["sha256"]
    except FileNotFoundError as error:
        raise InputError(
            f"a bundled file is missing: {error.filename}; install foible again"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != wanted:
        raise InputError(
            f"the bundled file {path} has sha256 {found[:12]}..., but {wanted[:12]}... is recorded "
            "beside it: it was changed or cut short; install foible again"
        )
    return data
