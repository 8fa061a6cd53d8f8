"""The command line as a whole, its lists, and audits: what it does and what mistakes are told."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import MODULE, call, environment, python, refused

import foible
from foible.audit import Plan
from foible.cli.sharing import joined
from foible.core.errors import LogError

SMALL = """
samples = 40
curves = []
explanations = []
thesis = false
checks = {checks}

[data]
source = "usercode:data"

[[models]]
name = "<b>mine</b>"
source = "usercode:make"

[[attacks]]
name = "fgsm-linf"
recipe = "fgsm"
norm = "linf"

[[thresholds]]
what = "accuracy"
at_least = {least}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "usercode.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("usercode", None)


def small_plan(folder: Path, least: float = 0.5, checks: str = "false") -> Path:
    path = folder / "plan.toml"
    path.write_text(SMALL.format(least=least, checks=checks))
    return path


# --- the whole


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from foible.cli import main\n"
        "sys.argv = ['foible', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "print('CODE', code, sorted(heavy))"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    for verb in (
        "audit",
        "report",
        "attack",
        "explain",
        "harden",
        "detect",
        "serve",
        "list",
        "show",
    ):
        assert f" {verb} " in done.stdout
    assert "CODE 0 []" in done.stdout
    assert "Usage: foible [OPTIONS]" in done.stdout


def test_the_version_and_a_wrong_verb() -> None:
    assert call("--version").strip() == f"foible {foible.__version__}"
    assert "Did you mean 'audit'" in call("adit", code=2)


@pytest.mark.parametrize(
    "verb", ["audit", "report", "attack", "explain", "harden", "detect", "serve", "list", "show"]
)
def test_every_verb_has_help(verb: str) -> None:
    assert f"foible {verb}" in call(verb, "--help")


def test_several_numbers_after_an_option() -> None:
    assert joined(["--mean", "0.1", "-2", ".5", "--std", "1,", "1/2,3", "a.png", "4"]) == [
        "--mean", "0.1,-2,.5", "--std", "1,1/2,3", "a.png", "4",
    ]  # fmt: skip


def test_the_cause_is_shown_to_those_who_ask(here: Path, monkeypatch) -> None:
    monkeypatch.setenv("FOIBLE_DEBUG", "1")
    with pytest.raises(foible.FoibleError) as caught:
        call("audit", "--model", "usercode:raises", "--data", "usercode:data")
    assert str(caught.value.__cause__) == "no GPU here"


# --- audit


class Fake:
    """Stands for foible.audit.run: keeps what it was given and ends at once."""

    def __init__(self) -> None:
        self.model: dict[str, Any] = {}
        self.x, self.y, self.out = torch.empty(0), torch.empty(0), ""
        self.options: dict[str, Any] = {}

    def __call__(self, model: Any, data: Any, out: Any, **options: Any) -> Any:
        self.model, (self.x, self.y), self.out, self.options = model, data, str(out), options
        raise LogError("enough")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(foible.audit, "run", made, raising=False)
    return made


def test_without_a_model_two_bundled_ones_are_audited(fake: Fake) -> None:
    refused("audit", "--samples", 50)
    assert list(fake.model) == ["standard", "hardened"] and fake.out == "runs/first"
    assert fake.y.bincount().tolist() == [5] * 10
    plan = fake.options["plan"]
    assert plan == Plan.preset("quick", samples=50)
    assert fake.options["about"]["classes"] == foible.zoo.CLASSES
    assert fake.options["about"]["data"] == "Fashion-MNIST sample"
    assert fake.options["about"]["command"].startswith("foible ")
    assert fake.options["fail_under"] is False


def test_an_own_model_with_everything(fake: Fake, here: Path) -> None:
    from safetensors.torch import save_file

    weights = {"2.weight": torch.full((3, 6), 0.5), "2.bias": torch.ones(3)}
    save_file(weights, here / "w.safetensors")
    refused("audit", "--model", "usercode:make", "--weights", "w.safetensors", "--data",
            "usercode:data", "--bounds", "0", "2", "--mean", "0.5", "--std", "1/4", "--eps",
            "8/255", "--preset", "full", "--seed", 3, "--name", "mine", "--fail-under", "--out",
            "runs/x", "--samples", 30)  # fmt: skip
    held = fake.model["mine"]
    assert held.bounds == (0, 2) and held.preprocess == ((0.5,), (0.25,))
    assert torch.equal(held.net[2].weight, weights["2.weight"])
    assert fake.options["plan"] == Plan.preset("full", eps=8 / 255, seed=3, samples=30)
    assert fake.out == "runs/x" and fake.options["fail_under"] and len(fake.x) == 30


def test_eps_follows_the_bounds_and_the_folder_the_model(fake: Fake, here: Path) -> None:
    refused("audit", "--model", "usercode:make", "--data", "usercode:data", "--bounds", "0", "255")
    assert fake.options["plan"].eps == pytest.approx(25.5)
    assert fake.out == "runs/usercode.make" and list(fake.model) == ["usercode.make"]


def test_the_printed_plan_is_read_again(fake: Fake, here: Path) -> None:
    asked = ("--model", "usercode:make", "--data", "usercode:data", "--bounds=-inf", "inf",
             "--mean", "0.5", "--std", "2", "--eps", "8/255", "--out", "runs/y")  # fmt: skip
    text = call("audit", *asked, "--print-plan")
    assert fake.model == {}
    (here / "plan.toml").write_text(text)
    refused("audit", *asked)
    first, folder = fake.options["plan"], fake.out
    refused("audit", "--plan", "plan.toml")
    assert (fake.options["plan"], fake.out) == (first, folder)
    held = fake.model["usercode.make"]
    assert held.bounds == (-np.inf, np.inf) and held.preprocess == ((0.5,), (2.0,))
    refused("audit", "--plan", "plan.toml", "--eps", 0.2, "--seed", 9, "--out", "runs/z",
            "--model", "zoo:standard", "--data", "zoo:sample")  # fmt: skip
    assert fake.options["plan"].eps == 0.2 and fake.options["plan"].seed == 9
    assert list(fake.model) == ["standard"] and fake.out == "runs/z" and len(fake.x) == 1000
    assert call("audit", "--print-plan") == Plan.preset("quick").to_toml(
        [{"name": "standard", "source": "zoo:standard"},
         {"name": "hardened", "source": "zoo:hardened"}],
        {"source": "zoo:sample"}, "runs/first",
    )  # fmt: skip


def test_a_small_audit_from_end_to_end(here: Path) -> None:
    small_plan(here, checks="true")
    text = call("audit", "--plan", "plan.toml", "--out", "runs/a")
    assert "<b>mine</b>" in text and "100.0 %" in " ".join(text.split()).replace("\u00a0", " ")
    assert "Report: runs/a/report.html" in text
    page = (here / "runs/a/report.html").read_text()
    assert "<b>mine</b>" not in page and "&lt;b&gt;mine&lt;/b&gt;" in page
    log = (here / "runs/a/log.jsonl").read_bytes()
    again = call("audit", "--plan", "plan.toml", "--out", "runs/a")
    assert "resumed" in again and (here / "runs/a/log.jsonl").read_bytes() == log
    (here / "runs/a/report.html").unlink()
    assert call("report", here / "runs/a/log.jsonl").strip().endswith("report.html")
    assert (here / "runs/a/report.html").read_text() == page
    assert "no plan.json" in refused("report", here)


@pytest.mark.parametrize(
    ("least", "ask", "code"), [(0.5, True, 0), (1.01, True, 1), (1.01, False, 0)]
)
def test_a_missed_threshold_is_an_exit_code_where_asked(here: Path, least, ask, code) -> None:
    small_plan(here, least)
    more = ["--fail-under"] if ask else []
    text = call("audit", "--plan", "plan.toml", *more, "--out", "runs/a", code=code)
    assert ("threshold is missed" in text) == (least > 1)
    assert ("missed" if least > 1 else "met") in text


def test_ctrl_c_keeps_what_is_finished(here: Path, monkeypatch) -> None:
    from foible.audit import cells

    small_plan(here)

    def interrupted(self: Any, context: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cells.AttackWork, "__call__", interrupted)
        text = call("audit", "--plan", "plan.toml", "--out", "runs/a", code=3)
    assert "the same command goes on from there" in text
    assert len((here / "runs/a/log.jsonl").read_text().splitlines()) == 1
    assert "resumed: 1 of 3" in call("audit", "--plan", "plan.toml", "--out", "runs/a")


def test_a_cell_that_fails_makes_the_audit_incomplete(here: Path, monkeypatch) -> None:
    from foible.audit import cells

    def fails(self: Any, context: Any) -> Any:
        raise foible.FoibleError("the gradient went away: look there")

    small_plan(here)
    monkeypatch.setattr(cells.AttackWork, "__call__", fails)
    text = call("audit", "--plan", "plan.toml", "--out", "runs/a", code=3)
    assert "fgsm-linf: the gradient went away: look there" in text


def test_failed_checks_are_printed_with_their_advice(here: Path) -> None:
    (here / "usercode.py").write_text(
        MODULE + "\ndef soft():\n    return nn.Sequential(make(), nn.Softmax(1))\n"
    )
    small_plan(here, checks="true")
    text = call("audit", "--plan", "plan.toml", "--model", "usercode:soft", "--out", "runs/a")
    flat = " ".join(text.split())
    assert "failed check, usercode.soft: " in flat and "scores sum to 1" in flat
    assert "--outputs probabilities" in flat or 'outputs="probabilities"' in flat


def test_a_full_disk_is_incomplete_and_a_forbidden_one_a_mistake(here: Path, monkeypatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise LogError("the disk is full: free some space") from OSError(errno.ENOSPC, "full")

    small_plan(here)
    (here / "file").write_text("x")
    assert "cannot be used as a run folder" in refused(
        "audit", "--plan", "plan.toml", "--out", "file"
    )
    monkeypatch.setattr(foible.audit, "run", full, raising=False)
    text = call("audit", "--plan", "plan.toml", code=3)
    assert "free some space" in text


def npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_mistakes_of_an_audit_are_told_before_any_work(here: Path) -> None:
    x, y = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6), np.array([0, 1, 2, 0])
    bad = np.where(np.arange(24).reshape(4, 6) == 5, np.nan, x)
    torch.save(torch.nn.Linear(2, 2), here / "whole.pt")
    (here / "broken.toml").write_text("eps = = 3")
    (here / "odd.toml").write_text('[[models]]\nsource = "usercode:make"\nweight = "w"\n')
    mine = ("--model", "usercode:make", "--data")
    for args, said in (
        (("--model", "usercode:make"), "--data is missing: give samples"),
        ((*mine, npz(here / "a.npz", x=bad, y=y)), "NaN or infinite in 1 of 4 samples"),
        ((*mine, npz(here / "b.npz", x=x * 9, y=y)), "scale x into the bounds"),
        ((*mine, npz(here / "c.npz", x=x, y=y + 0.5)), "whole class numbers"),
        ((*mine, npz(here / "d.npz", x=x, y=y + 1)), "labels go from 1 to 3.*subtract 1"),
        ((*mine, npz(here / "e.npz", x=x[:0], y=y[:0])), "is empty"),
        ((*mine, npz(here / "f.npz", x=x, y=y * 0)), "one class only"),
        ((*mine, npz(here / "g.npz", x=np.array([{}, {}], object), y=y[:2])), "Save plain arrays"),
        ((*mine, npz(here / "h.npz", x=x)), "holds no labels"),
        ((*mine, "usercode:data", "--weights", "whole.pt"), "a pickle.*safetensors"),
        ((*mine, "usercode:data", "--weights", "gone.safetensors"), "there is no file"),
        ((*mine, "usercode:data", "--mean", "0.5"), "std is missing"),
        ((*mine, "usercode:data", "--bounds", "1", "0"), "first must be below"),
        ((*mine, "usercode:data", "--outputs", "scores"), "choose logits, probabilities, logit"),
        ((*mine, "usercode:data", "--eps", "zero"), "write 0.03 or 8/255"),
        ((*mine, "usercode:data", "--eps", "0"), "positive"),
        ((*mine, "usercode:data", "--samples", "1"), "at least 2"),
        ((*mine, "usercode:data", "--preset", "slow"), "quick or full"),
        ((*mine, "zoo:sample"), r"cannot take inputs of shape \(1, 28, 28\)"),
        (("--model", "usercode:raises", "--data", "usercode:data"), "no GPU here"),
        (("--model", "usercode:nan", "--data", "usercode:data"), "NaN"),
        (("--labels", "y.npy"), "data of the plan have no source|labels"),
        (("--mean", "0", "--std", "1"), "--mean, --std without --model"),
        (("--plan", "gone.toml"), "--print-plan > plan.toml"),
        (("--plan", "broken.toml"), "not valid TOML"),
        (("--plan", "odd.toml", "--data", "usercode:data"), "holds weight: it knows"),
        (("--plan", "odd.toml", "--preset", "full"), "exclude each other"),
        (("--name", "a"), "2 models: name them in the plan"),
    ):
        assert re.search(said, refused("audit", *args)), said
    assert not (here / "runs").exists()


def test_the_real_command_in_a_real_process(here: Path) -> None:
    small_plan(here)
    done = python("-m", "foible.cli", "audit", "--plan", "plan.toml", "--out", "r", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "Report: r/report.html" in done.stdout and "\x1b[" not in done.stdout
    plan = json.loads((here / "r" / "plan.json").read_text())
    assert plan["command"] == "foible audit --plan plan.toml --out r"
    assert plan["models"][0]["name"] == "<b>mine</b>"
    wrong = python("-m", "foible.cli", "audit", "--model", "usercode:raises", "--data", "d.npz",
                   cwd=here)  # fmt: skip
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("foible: usercode:raises raised RuntimeError: no GPU here (user")


def test_a_real_interrupt_ends_with_three_and_the_same_command_goes_on(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "foible.cli", "audit", "--samples", "60", "--out", "r"]
    log = tmp_path / "r" / "log.jsonl"
    with subprocess.Popen(
        asked, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as running:  # fmt: skip
        until = time.monotonic() + 120
        while time.monotonic() < until and not (log.exists() and log.read_bytes().count(b"\n") > 2):
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=120)
    assert running.returncode == 3, (out, err)
    assert "the same command goes on from there" in out and "Traceback" not in err
    assert log.read_bytes().count(b"\n") > 2 and (tmp_path / "r" / "report.html").exists()
