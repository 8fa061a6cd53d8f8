"""`foible harden`: a training with a folder, a report of before and after, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import call, refused
from test_cli import here as here

import foible

OWN = ("harden", "--model", "usercode:make", "--data", "usercode:data", "--eps", "0.02")
QUICK = (*OWN, "--steps", "2", "--epochs", "2", "--batch", "8")


def test_a_net_is_hardened_and_audited_before_and_after(here: Path) -> None:
    text = call(*QUICK, "--out", "r")
    assert "Trained: r/model.safetensors" in text and "Report: r/report/report.html" in text
    page = (here / "r/report/report.html").read_text()
    assert "before" in page and "after" in page
    rows = (here / "r/history.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("epoch,step,loss,lr,clean,robust")
    # The weights are those of the user's own class: the command line audits them as they are.
    held = foible.audit.sources.load_model("usercode:make", "r/model.safetensors")
    raw = foible.audit.sources.load_model("usercode:make")
    x = torch.rand(5, 6)
    assert held(x).shape == (5, 3) and not torch.equal(held(x), raw(x))


def test_what_is_measured_on_was_not_trained_on(here: Path, monkeypatch) -> None:
    seen = {}

    def kept(net, data, *rest, **more):
        seen["data"] = data
        raise KeyboardInterrupt

    monkeypatch.setattr(foible.defend, "train", kept)
    text = call(*QUICK, "--out", "r", code=3)
    assert "with --resume goes on" in text
    assert len(seen["data"][1]) == 36  # four of forty are kept for the report
    call(*QUICK, "--test", "usercode:data", "--out", "r", code=3)
    assert len(seen["data"][1]) == 40


def test_the_report_measures_at_the_eps_that_was_trained_for(here: Path, monkeypatch) -> None:
    seen = {}

    def kept(models, data, folder, plan, about):
        seen["eps"] = plan.eps
        raise foible.core.errors.InputError("far enough")

    monkeypatch.setattr(foible.audit, "run", kept)
    for norm in ("linf", "LINF"):
        assert "far enough" in call(*QUICK, "--norm", norm, "--out", norm, code=2)
        assert seen.pop("eps") == 0.02


def test_it_goes_on_only_where_it_is_asked_to(here: Path) -> None:
    assert "there is no checkpoint in r" in refused(*QUICK, "--resume", "--out", "r")
    call(*QUICK, "--no-report", "--out", "r")
    whole = (here / "r/model.safetensors").read_bytes()
    assert "holds a training already: --resume" in refused(*QUICK, "--no-report", "--out", "r")
    call(*QUICK, "--no-report", "--out", "r", "--resume")
    assert (here / "r/model.safetensors").read_bytes() == whole
    other = refused(*QUICK, "--no-report", "--out", "r", "--resume", "--lr", "0.1")
    assert "of another training" in other
    assert not (here / "r/report").exists()


def test_the_report_is_of_the_norm_and_size_that_were_trained_against(here, monkeypatch) -> None:
    seen = {}

    def kept(models, data, out, *, plan, about):
        seen["plan"], seen["n"] = plan, data[0][0].numel()
        raise foible.FoibleError("enough")

    monkeypatch.setattr(foible.audit, "run", kept)
    for norm, size in (("linf", 0.02), ("l2", 0.5), ("L1", 2.0)):
        asked = ["harden", "--model", "usercode:make", "--data", "usercode:data", "--norm", norm]
        more = ("--epochs", "1", "--steps", "1", "--out", f"r{norm}")
        assert "enough" in call(*asked, "--eps", size, *more, code=2)
        assert seen["plan"].radius(norm.lower(), seen["n"]) == pytest.approx(size, rel=0.02)


def test_every_named_loss_trains_a_net() -> None:
    from foible.defend import Settings, train
    from foible.defend.naming import LOSSES, Choice, named

    x = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % 3
    for name in LOSSES:
        norms = [torch.nn.BatchNorm2d(4)] if name == "advprop" else []
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), *norms, torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Linear(64, 3),
        )  # fmt: skip
        loss = named(name, Choice(foible.Linf(0.05), steps=2))
        made = train(net, (x, y), loss, 1, settings=Settings(batch=8, hold_out=0))
        moved = [
            not torch.equal(a, b) for a, b in zip(net.parameters(), made.parameters(), strict=True)
        ]
        assert all(moved), name
    with pytest.raises(foible.FoibleError, match="Linf with one eps"):
        named("interval", Choice(foible.L2(1.0)))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--loss", "magic"), "no loss 'magic': choose trades, pgd"),
        (("--norm", "l7"), "no norm 'l7'"),
        (("--norm", "l2", "--eps", "x"), "x"),
        (("--epochs", "0"), "epochs=0"),
        (("--beta", "0"), "beta=0"),
        (("--precision", "int8"), "precision"),
        (("--test", "zoo:nothing"), "no bundled data"),
    ],
)
def test_mistakes_are_told(here: Path, more: tuple[str, ...], said: str) -> None:
    assert said in refused(*QUICK, "--out", "r", *more)


def test_a_model_without_data_is_a_mistake(here: Path) -> None:
    assert "--data is missing" in refused("harden", "--model", "usercode:make")
    assert "--bounds without --model" in refused("harden", "--bounds", "-1", "1")


def test_another_norm_needs_a_size(here: Path) -> None:
    told = refused("harden", "--model", "usercode:make", "--data", "usercode:data", "--norm", "l2")
    assert "--eps is missing: l2" in told
