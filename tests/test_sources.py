"""Models of users: numbers, factories, weights, and what each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from user_code import here

import foible
from foible.audit.sources import load_model, parse_number, parse_numbers
from foible.core.errors import FoibleError, InputError

__all__ = ["here"]  # a fixture

# --- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.5", 0.5), ("-1e-2", -0.01), (3, 3.0), ("-1/4", -0.25)],
)
def test_numbers(text, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "1/2/3", "nan", None])
def test_what_is_no_number_is_refused(text) -> None:
    with pytest.raises(InputError, match="write 0.03 or 8/255"):
        parse_number(text)


def test_several_numbers() -> None:
    assert parse_numbers("0.1,0.2, 1/2") == (0.1, 0.2, 0.5)
    assert parse_numbers([0.1, "1/2"]) == (0.1, 0.5)
    assert parse_numbers(2) == (2.0,)
    with pytest.raises(InputError, match="missing"):
        parse_numbers(" ")


# --- models


def test_a_bundled_model_is_the_bundled_model() -> None:
    held, net = load_model("zoo:standard"), foible.zoo.load("standard")
    x = foible.zoo.sample()[0][:4]
    with torch.no_grad():
        assert torch.equal(held.net(x), net(x))
    with pytest.raises(FoibleError, match="'standard', 'hardened'"):
        load_model("zoo:strong")


@pytest.mark.parametrize("name", ["make", "ready", "Rows"])
def test_a_factory_a_network_and_a_class_are_models(here: Path, name: str) -> None:
    held = load_model(f"usercode:{name}", bounds=("-1", "1/2"), outputs="logits")
    assert isinstance(held.net, nn.Module)
    assert held.bounds == (-1.0, 0.5)


def test_a_module_object_is_a_model_and_a_wrapped_one_stays(here: Path) -> None:
    net = nn.Linear(2, 2)
    assert load_model(net).net is net
    assert load_model("usercode:wrapped").bounds == (-1.0, 1.0)
    with pytest.raises(InputError, match="wrapped already"):
        load_model("usercode:wrapped", bounds=(0, 2))


def test_an_error_of_a_factory_is_the_cause_of_a_short_message(here: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_model("usercode:raises")
    assert "usercode:raises raised RuntimeError: no GPU here (usercode.py, line " in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(InputError, match="SystemExit: bye"):
        load_model("usercode:leaves")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("usercode:mkae", "did you mean make"),
        ("usercode:weights_only", "returned OrderedDict.*--weights"),
        ("usercode:number", "is int: name a torch.nn.Module"),
        ("nowhere:make", "there is no module 'nowhere' here"),
        ("usercode.deeper:make", "no module 'usercode.deeper'|not a package"),
        ("needy:make", "needs 'surely_not_installed': install that"),
        ("hasty:make", r"importing hasty raised ZeroDivisionError: division by zero \(hasty.py"),
        ("usercode.py:make", "write usercode:make"),
        ("usercode", "package.module:factory"),
        (":make", "package.module:name"),
        ("usercode.py", "is a file.*--weights"),
    ],
)
def test_what_is_no_model_is_told(here: Path, source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(source)


def test_mean_and_std_become_part_of_the_model(here: Path) -> None:
    held = load_model("usercode:ready", mean="0.5", std="1/4")
    x = torch.rand(3, 12)
    assert torch.allclose(held(x), held.net((x - 0.5) / 0.25))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": "0.5"}, "std is missing"),
        ({"std": "0.5"}, "mean is missing"),
        ({"mean": "0", "std": "0"}, "must be positive"),
        ({"bounds": ("1", "0")}, "first must be below"),
        ({"bounds": ("1",)}, "two numbers"),
        ({"outputs": "scores"}, "logits, probabilities, logit"),
    ],
)
def test_options_that_cannot_be_are_told(options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(nn.Linear(2, 2), **options)


# --- weights


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def loaded(path: Path, into: nn.Module | None = None) -> dict[str, torch.Tensor]:
    return load_model(into or net(), weights=path).net.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_weights_are_loaded_whatever_holds_them(tmp_path: Path) -> None:
    want = net().state_dict()
    save_file(want, tmp_path / "a.safetensors")
    torch.save(want, tmp_path / "b.pt")
    torch.save({"epoch": 3, "state_dict": want}, tmp_path / "c.pth")
    save_file({f"module.{k}": v for k, v in want.items()}, tmp_path / "d.safetensors")
    for name in ("a.safetensors", "b.pt", "c.pth", "d.safetensors"):
        assert same(loaded(tmp_path / name), want), name


def test_tied_weights_need_to_be_there_once(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    want = {k: torch.full_like(v, 7) for k, v in tied.state_dict().items() if k != "1.weight"}
    save_file(want, tmp_path / "w.safetensors")
    assert float(loaded(tmp_path / "w.safetensors", tied)["1.weight"].mean()) == 7


class Evil:
    def __reduce__(self):
        return (open, (str(Evil.mark), "w"))

    mark = Path()


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    Evil.mark = tmp_path / "ran"
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    torch.save(net(), tmp_path / "whole.pt")
    for name in ("evil.pt", "whole.pt"):
        with pytest.raises(InputError, match="could run any code.*safetensors.torch.save_file"):
            loaded(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    held = net().state_dict()
    save_file({k: v for k, v in held.items() if k != "2.bias"} | {"3.bias": held["2.bias"]}, path)
    with pytest.raises(InputError, match=r"missing 2\.bias; unexpected 3\.bias"):
        loaded(path)
    save_file({f"net.{k}": v for k, v in held.items()}, path)
    with pytest.raises(InputError, match=r"begin with 'net\.': take it off"):
        loaded(path)
    save_file(held | {"2.bias": torch.zeros(5)}, path)
    with pytest.raises(InputError, match=r"2\.bias \(5,\) for \(2,\)"):
        loaded(path)
    save_file(held | {"2.bias": torch.tensor([0.0, float("nan")])}, path)
    with pytest.raises(InputError, match=r"NaN in 1 of 4 tensors \(2\.bias\)"):
        loaded(path)


def test_files_that_are_no_weights_are_told(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-10])
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "w.pkl").write_bytes(b"x")
    torch.save(net().state_dict(), tmp_path / "pickled.safetensors")
    for name, said in (
        ("cut.safetensors", "not a safetensors file, or it is cut short"),
        ("pickled.safetensors", "not a safetensors file"),
        ("list.pt", "holds list and not a state dict"),
        ("text.pt", "safetensors"),
        ("w.pkl", r"ends in '\.pkl'.*safetensors"),
        ("gone.pt", "there is no file"),
    ):
        with pytest.raises(InputError, match=said):
            loaded(tmp_path / name)
