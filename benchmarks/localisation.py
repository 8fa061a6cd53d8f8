"""CAM and Grad-CAM: do they point at the garment? A small net, trained here, on a noisy canvas.

python benchmarks/localisation.py [--quick] [--threads 1]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import Section, Setting, command_line, finish, header, images, setting
from torch import Tensor, nn

import foible

SECTIONS = ("localisation",)
BAR = ("what", "measured", "bar", "verdict")
CANVAS, SIDE = 56, 28
TRAINED, EPOCHS, BATCH = 6000, 4, 64
UNIFORM = SIDE**2 / CANVAS**2


def pooled_net() -> nn.Module:
    """Three convolutions, the mean over 14 x 14 positions, one linear layer; seeded."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=g) * (2 / p[0].numel()) ** 0.5)
    return net


def placed(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Garments on canvases of noise, and the corner (B, 2) of each box; no edge shows the box."""
    canvas = 0.5 * torch.rand(len(x), 1, CANVAS, CANVAS, generator=generator)
    corner = torch.randint(0, CANVAS - SIDE + 1, (len(x), 2), generator=generator)
    for one, garment, (top, left) in zip(canvas, x, corner.tolist(), strict=True):
        window = one[:, top : top + SIDE, left : left + SIDE]
        window.copy_(torch.where(garment > 0.05, garment, window))
    return canvas, corner


def trained(x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    net, g = pooled_net(), torch.Generator().manual_seed(1)
    steps = epochs * -(-len(x) // BATCH)
    optimiser = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=steps)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=g).split(BATCH):
            loss = F.cross_entropy(net(placed(x[some], g)[0]), y[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


def inside(corner: Tensor) -> Tensor:
    """Which pixels (B, 1, 56, 56) lie in each box."""
    at = torch.arange(CANVAS)
    down, right = ((at >= c[:, None]) & (at < c[:, None] + SIDE) for c in corner.T)
    return (down[:, :, None] & right[:, None, :])[:, None]


def localisation(how: Setting, table: Section) -> None:
    x, y = foible.zoo.fashion_mnist("train")
    count, epochs = (1000, 1) if how.quick else (TRAINED, EPOCHS)
    net = trained(x[:count], y[:count], epochs)
    x, y = images(how.samples)  # of the test set
    canvas, corner = placed(x, torch.Generator().manual_seed(2))
    with torch.no_grad():
        right = torch.cat([net(some).argmax(1) for some in canvas.split(200)]) == y
    table.add(
        "localisation-accuracy",
        f"the net: {count} training images, {epochs} epochs; accuracy on {len(x)} canvases",
        float(right.float().mean()), "none", "",
    )  # fmt: skip
    canvas, y, box = canvas[right], y[right], inside(corner[right])
    e = foible.explain
    rows = {"cam": e.cam(), "grad_cam": e.grad_cam(), "random_map": e.random_map()}
    for name, explainer in rows.items():
        maps = explainer(net, canvas, y)
        top = maps.flatten(1).argmax(1, keepdim=True)
        hit = float(box.flatten(1).gather(1, top).float().mean())
        mass = maps.clamp(min=0).flatten(1)
        ratio = (mass * box.flatten(1)).sum(1) / mass.sum(1).clamp_min(1e-12) / UNIFORM
        what = f"{name}, {len(canvas)} canvases that are classified rightly: "
        first = what + f"the largest value lies in the garment's box (chance {UNIFORM:g})"
        second = (
            what
            + f"mean share of the positive mass in the box over its area (at most {1 / UNIFORM:g})"
        )
        if name == "random_map":
            table.add(f"localisation-{name}-pointing", first, hit, "none, the control", "")
            table.add(f"localisation-{name}-mass", second, float(ratio.mean()), "none", "")
        else:
            table.bar(f"localisation-{name}-pointing", first, hit, ">=", 0.95)
            table.bar(f"localisation-{name}-mass", second, float(ratio.mean()), ">=", 3.0)


def main() -> None:
    args = command_line(__doc__, "localisation", SECTIONS, runs=1)
    how = setting(args)
    table = Section(
        "localisation",
        "Do class activation maps point at the garment?",
        BAR,
        f"Garments of 28 x 28 at random places on canvases of {CANVAS} x {CANVAS}, uniform noise "
        "in [0, 0.5] wherever the garment is black, so that no edge shows the box. A net with "
        "batch norm, the mean over positions and one linear layer, trained in this run, seeded.",
    )
    localisation(how, table)
    head = header("Localisation", (), "CAM and Grad-CAM against boxes that are known.")
    finish(args, head, [table], SECTIONS)


if __name__ == "__main__":
    main()
