"""Real-time saliency: a network that has learnt a classifier's masks, and gives one at a look."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foible.core.access import Access
from foible.core.errors import InputError, MissingExtra
from foible.core.explainer import Field
from foible.core.oracle import Oracle
from foible.core.progress import tick
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.core.threat import Box
from foible.explain.base import Explanation, check_inputs, targeted
from foible.explain.masks import noisy
from foible.explain.removal import filling
from foible.models import as_model
from foible.parts.threats import Masking
from foible.parts.threats.masking import roughness, upsampled
from foible.parts.transforms import images

BUNDLED = "standard"
BATCH, RATE = 64, 3e-3
OTHERS = 0.2  # of the targets are classes drawn at random, so that the selector is learnt
PRESERVE, ORDER = 0.3, 3.0  # what the kept region, and the order of the pixels, count
SHARP = 0.5  # how soft the edge of a cut is, in units of the mask's logit


class MaskNet(nn.Module):
    """A U-Net of three levels that gives the logits (B, 1, h, w) of the mask's coarse grid.

    The class selector of Dabkowski and Gal 2017: an embedding of the class gates the coarsest
    features. The first convolution has the stride of the grid's cell, so that the work is that of
    a small image whatever the size. All sizes are read off the weights when they are loaded.
    """

    def __init__(self, channels: int, classes: int, width: int, cell: int) -> None:
        super().__init__()
        self.cell, wide = cell, (width, 2 * width, 4 * width)
        self.first = nn.Conv2d(channels, wide[0], 2 * cell + 1, cell, cell)
        self.second = nn.Conv2d(wide[0], wide[1], 3, 2, 1)
        self.third = nn.Conv2d(wide[1], wide[2], 3, 2, 1)
        self.gate = nn.Embedding(classes, wide[2])
        self.up = nn.Conv2d(wide[2] + wide[1], wide[1], 3, 1, 1)
        self.out = nn.Conv2d(wide[1] + wide[0], wide[0], 3, 1, 1)
        self.head = nn.Conv2d(wide[0], 1, 3, 1, 1)
        # Of groups and not of the batch: a mask hangs on its own image only.
        self.norms = nn.ModuleList(nn.GroupNorm(4, w) for w in (*wide, wide[1], wide[0]))
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, -1.0)  # a mask begins small

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Look once at x (B, C, H, W) for the classes y (B,)."""
        one, two, three, up, out = self.norms
        fine = one(self.first(x)).relu()
        middle = two(self.second(fine)).relu()
        coarse = three(self.third(middle)).relu() * self.gate(y)[:, :, None, None]
        coarse = F.interpolate(coarse, middle.shape[2:])
        middle = up(self.up(torch.cat([coarse, middle], 1))).relu()
        middle = F.interpolate(middle, fine.shape[2:])
        grid: Tensor = self.head(out(self.out(torch.cat([middle, fine], 1))).relu())
        return grid


@dataclass(frozen=True)
class MaskingModel(Explanation):
    """The mask of a trained network: one look of its own, and none at the model.

    weights: the network, as the text (base64) of a safetensors file; `train_masks` makes it, and
    `masking_model` reads a file. The map is the region whose removal loses the class, in [0, 1]
    and the same for all colours, so it has no sign. The model is asked for the predicted class at
    most: for another model than the one that it was trained for the map is that one's still. It
    can be differentiated by x, and not by the model's parameters.
    """

    weights: str = field(repr=False)
    access = Access.LABELS
    signed = False
    verb = "delete"

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """No model call."""
        images(rows.x, "a masking model")
        net = _network(self.weights, rows.x.dtype, str(rows.x.device))
        takes, classes = net.first.weight.shape[1], len(net.gate.weight)
        if rows.x.shape[1] != takes or int(rows.y.max()) >= classes:
            raise InputError(
                f"this masking model is for images of {takes} colours and {classes} classes; x has "
                f"shape {tuple(rows.x.shape)} and class {int(rows.y.max())}: train one for this "
                "classifier by foible.explain.train_masks"
            )
        with torch.set_grad_enabled(create_graph):
            x = rows.x if create_graph else rows.x.detach()
            return upsampled(net(x, rows.y).sigmoid(), x).expand_as(x).clone()

    def save(self, path: str | Path) -> None:
        """Write the network as a safetensors file, which `masking_model` reads."""
        Path(path).write_bytes(base64.b64decode(self.weights))


def masking_model(weights: str | Path = BUNDLED) -> MaskingModel:
    """Return a trained network that gives masks at one look (B15, Dabkowski and Gal 2017).

    "Real Time Image Saliency for Black Box Classifiers". weights: the file that
    `MaskingModel.save` wrote, or "standard", the network that is bundled for
    `foible.zoo.load("standard")`; `train_masks` makes one for any other classifier.

    Raises InputError for a file that holds no masking model.

    >>> import foible
    >>> x, y = foible.zoo.sample()
    >>> net = foible.zoo.load("standard")
    >>> m = foible.explain.masking_model()(net, x[:4], y[:4])
    >>> before, after = (net(i).softmax(1)[range(4), y[:4]] for i in (x[:4], x[:4] * (1 - m)))
    >>> bool((after < before).all()), bool((m >= 0).all() and (m <= 1).all())
    (True, True)
    """
    if weights == BUNDLED:
        where: Any = files("foible.explain").joinpath("weights", f"masks_{BUNDLED}.safetensors")
        notes = files("foible.explain").joinpath("weights", f"masks_{BUNDLED}.json")
        wanted = json.loads(notes.read_text(encoding="utf-8"))["sha256"]
    else:
        where, wanted = Path(weights), None
    try:
        data = where.read_bytes()
    except OSError as error:
        raise InputError(
            f"there is no masking model in {where} ({error}): give a file that MaskingModel.save "
            f"wrote, or {BUNDLED!r}"
        ) from error
    if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
        raise InputError(f"the bundled file {where} was changed: install foible again")
    made = MaskingModel(base64.b64encode(data).decode())
    try:
        _network(made.weights, torch.float32, "cpu")
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return made


def train_masks(
    model: Any, x: Tensor, epochs: int = 8, area: float = 2.0, smooth: float = 0.5,
    width: int = 16, seed: int = 0,
) -> MaskingModel:  # fmt: skip
    """Train a network that gives the masks of a classifier at one look (B15).

    Dabkowski and Gal 2017. model: with GRADIENTS access, left as it was. x: (N, C, H, W) images,
    whose labels are not needed: the class is the predicted one, or for a fifth of them any. With m
    the mask, it lowers p(class | m hidden)^0.3 - 0.3 log p(class | only m shown) + area *
    mean(m)^0.3 + smooth * roughness(m); what is hidden shows, at random, a blur, one colour
    (0 as often as not) or noise. A larger `area` gives smaller masks. width: of the finest
    level, a multiple of 4; 16 is 240 kB and 32 four times that. seed: fixes all randomness.

    Ticks a row for every image seen, `epochs * N` in all; Ctrl-C keeps what is learnt so far.
    Raises InputError for settings that cannot be, KindError for what is no image.

    Departure: the paper's loss asks for a region and not for an order within it, and a blurred
    region ranks pixels badly. So a third cut is shown: m's largest cells hidden, their share drawn
    evenly from 0 to 1 and its edge soft; the mean probability is what `deletion` measures.

    >>> import foible
    >>> x, _ = foible.zoo.sample()
    >>> masks = foible.explain.train_masks(foible.zoo.load("standard"), x[:128], epochs=1, width=4)
    >>> masks(foible.zoo.load("standard"), x[:2]).shape
    torch.Size([2, 1, 28, 28])
    """
    check_inputs(x)
    side, held = min(images(x, "a masking model")), as_model(model)
    fit = all(price >= 0 for price in (area, smooth))  # which NaN is not
    if min(epochs, len(x)) < 1 or width < 4 or width % 4 or not fit:
        raise InputError(
            f"epochs={epochs}, width={width}, area={area}, smooth={smooth}, {len(x)} images: at "
            "least one epoch and image, a width of 4, 8, ..., prices that are not negative"
        )
    oracle, chosen = Oracle(held, len(x)), torch.Generator().manual_seed(seed)
    x, index = x.detach(), torch.arange(len(x), device=x.device)
    with oracle.session(seed):
        part = max(1, oracle.chunk(x) // 3)
        whole = Rows(index, index, x, torch.zeros_like(index))
        labels = [targeted(oracle, whole.take(some), None).y for some in index.split(3 * part)]
        rows = Rows(index, index, x, torch.cat(labels))
        # The session gives the global random state back.
        torch.default_generator.manual_seed(seed)
        net = MaskNet(x.shape[1], oracle.classes, width, max(2, round(side / 28))).to(x)
        lesson = Lesson(oracle, net, Box(*oracle.bounds), area, smooth)
        leaves = tuple(net.parameters())
        optimiser = torch.optim.Adam(leaves, RATE)
        total, step = epochs * math.ceil(len(x) / BATCH), 0
        try:
            for _ in range(epochs):
                for batch in torch.randperm(len(x), generator=chosen).split(BATCH):
                    warm, left = min(1.0, (step + 1) / 100), max(0.05, 1 - step / total)
                    optimiser.param_groups[0]["lr"] = RATE * warm * left
                    optimiser.zero_grad()
                    for piece in batch.to(x.device).split(part):
                        some = rows.take(piece)
                        loss = lesson(some, chosen) / len(batch)
                        for leaf, grad in zip(leaves, oracle.grad(loss, leaves, some), strict=True):
                            leaf.grad = grad if leaf.grad is None else leaf.grad + grad
                    optimiser.step()
                    step += 1
                    tick(len(batch))
        except KeyboardInterrupt:
            if step == 0:
                raise
    return MaskingModel(_packed(net))


@dataclass(frozen=True)
class Lesson:
    """What a masking net is taught by: the loss (B,) of its masks on rows, one draw of all."""

    oracle: Oracle
    net: MaskNet
    box: Box
    area: float
    smooth: float

    def __call__(self, rows: Rows, chosen: torch.Generator) -> Tensor:
        """Three forwards a row, on the graph of the net's weights."""
        count, where = len(rows), rows.x.device
        drawn = torch.rand(count, 3, generator=chosen).to(where)
        any_class = torch.randint(self.oracle.classes, (count,), generator=chosen).to(where)
        own = drawn[:, 0] >= OTHERS
        y = torch.where(own, rows.y, any_class)
        rows.extra["null"] = self._null(rows, drawn[:, 1], chosen)
        with torch.enable_grad():
            grid = self.net(rows.x, y)
            z = grid.sigmoid()
            level = grid.flatten(1).sort(1, descending=True).values
            place = (drawn[:, 2] * level.shape[1]).long()[:, None]
            cut = ((grid - level.gather(1, place)[:, :, None, None]) / SHARP).sigmoid()
            hide, keep = (Masking(self.net.cell, keep=k) for k in (False, True))
            shown = [hide.render(rows, z), keep.render(rows, z), hide.render(rows, cut)]
            thrice = rows.take(torch.arange(count, device=where).repeat(3))
            told = self.oracle.scores(torch.cat(shown), thrice).log_softmax(1)
            hidden, kept, ordered = told.gather(1, y.repeat(3)[:, None]).view(3, count)
            price = self.area * z.flatten(1).mean(1).clamp_min(1e-4) ** 0.3
            price = price + self.smooth * roughness(z)
            # What is left of a class that was never there need not be kept.
            preserve = -PRESERVE * kept.clamp_min(-8.0) * own
            loss: Tensor = (0.3 * hidden).exp() + preserve + ORDER * ordered.exp() + price
            return loss

    def _null(self, rows: Rows, kind: Tensor, chosen: torch.Generator) -> Tensor:
        """Return what is shown in place of x: a tenth noise, four tenths a colour, half a blur."""
        x, box = rows.x, self.box
        high, low = min(box.high, float(x.max())), max(box.low, float(x.min()))
        shade = torch.rand(len(x), 2, generator=chosen).to(x)
        colour = torch.where(shade[:, 1] < 0.5, low + (high - low) * shade[:, 0], 0.0)
        colour = colour.view(-1, *[1] * (x.dim() - 1)).expand_as(x)
        noise = noisy(box, torch.randn(x.shape, generator=chosen, dtype=x.dtype).to(x))
        kind = kind.view(-1, *[1] * (x.dim() - 1))
        null = torch.where(kind < 0.5, colour, filling("blur", rows))
        return torch.where(kind < 0.1, noise, null).clamp(box.low, box.high)


def _packed(net: MaskNet) -> str:
    """Return the weights as the text of a safetensors file."""
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    return base64.b64encode(_safetensors().save(state)).decode()


@lru_cache(maxsize=8)
def _network(weights: str, dtype: torch.dtype, device: str) -> MaskNet:
    """Return the network of a packed file, frozen; every name and shape must fit."""
    try:
        state = _safetensors().load(base64.b64decode(weights))
        first, gate = state["first.weight"], state["gate.weight"]
        sizes = (first.shape[1], len(gate), len(first), (first.shape[2] - 1) // 2)
        with torch.random.fork_rng(devices=[]):
            net = MaskNet(*sizes)
        net.load_state_dict(state)
    except MissingExtra:
        raise
    except Exception as error:  # safetensors' own kinds, torch's, and what odd shapes do
        raise InputError(
            f"this is no masking model, or it is cut short ({error}): make one by "
            "foible.explain.train_masks, and keep it by its method save"
        ) from error
    return net.to(device, dtype).requires_grad_(False).eval()


def _safetensors() -> Any:
    try:
        from safetensors import torch as reader
    except ImportError as error:
        raise MissingExtra(
            "masking models are kept by safetensors: pip install safetensors"
        ) from error
    return reader
