"""CAM and Grad-CAM: algebra on nets with a mean and a linear head, captum elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from conftest import PooledNet, SmallNet, filled, rand
from replicas import explanations as slow
from torch import Tensor, nn

from foible import attacks, explain
from foible.core.errors import AccessError, InputError, ModelError
from foible.models import bpda, ensemble, wrap
from foible.parts.threats import Linf


@pytest.fixture
def pooled() -> nn.Module:
    return filled(PooledNet(), 5, 2.0).double().eval()


@pytest.fixture
def x() -> Tensor:
    return rand(5, 1, 6, 6, seed=6, dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 1])


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- CAM


def test_the_mean_of_cam_and_the_bias_are_the_logit(pooled: nn.Module, x, y) -> None:
    maps = explain.cam().layer_map(pooled, x, y)
    assert maps.shape == (5, 4, 4)
    logit = pooled(x).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(maps.mean((1, 2)) + pooled.head.bias[y], logit, rtol=0, atol=1e-10)


def test_cam_is_the_heads_weights_on_the_activations(pooled: nn.Module, x, y) -> None:
    act = torch.relu(pooled.again(torch.relu(pooled.norm(pooled.conv(x)))))
    wanted = torch.einsum("bk,bkuv->buv", pooled.head.weight[y], act)
    for layer in (None, "act#2"):
        found = explain.cam(layer).layer_map(pooled, x, y)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    large = explain.cam()(pooled, x, y)
    assert large.shape == x.shape
    by_torch = F.interpolate(wanted[:, None], (6, 6), mode="bilinear")
    torch.testing.assert_close(large, by_torch, rtol=0, atol=1e-12)


@pytest.mark.parametrize("relu", [False, True])
def test_grad_cam_is_cam_up_to_a_positive_factor(relu: bool, pooled: nn.Module, x, y) -> None:
    cam = explain.cam().layer_map(pooled, x, y)
    grad = explain.grad_cam(relu=relu).layer_map(pooled, x, y)
    wanted = cam.clamp(min=0) if relu else cam
    torch.testing.assert_close(grad * 16, wanted, rtol=0, atol=1e-12)  # 4 x 4 positions
    assert (cam < 0).any() and (cam > 0).any()


class Headed(nn.Module):
    def __init__(self, head) -> None:
        super().__init__()
        self.conv, self.act, self.rest = nn.Conv2d(1, 4, 3), nn.ReLU(), head
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rest(self.act(self.conv(x))))


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (lambda a: a.amax((2, 3)), "does not take the mean"),
        (lambda a: (a * torch.arange(4.0).double()).mean((2, 3)), "does not take the mean"),
        (lambda a: torch.relu(a.mean((2, 3)) - 0.3), "is not linear"),
        (lambda a: a.mean((2, 3)) ** 2, "is not linear"),
        (lambda a: torch.relu(a.mean((2, 3)).roll(1, 1)), "is not linear"),
    ],
)
def test_cam_refuses_other_heads(head, why: str, x: Tensor) -> None:
    net = filled(Headed(head), 3, 2.0).double()
    with pytest.raises(ModelError, match=rf"{why}.*grad_cam\(\)"):
        explain.cam("act")(net, x, 1)
    assert explain.grad_cam("act", relu=False)(net, x, 1).shape == x.shape


def test_cam_takes_whatever_is_affine(x: Tensor) -> None:
    rest = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(4))
    net = filled(Headed(rest), 3, 2.0).double().eval()
    rest[3].running_mean.fill_(0.3)
    maps = explain.cam("act").layer_map(net.train(), x, 1)
    net.eval()
    bias = net.last(rest[3](torch.zeros(1, 4).double()))[0, 1]
    torch.testing.assert_close(maps.mean((1, 2)) + bias, net(x)[:, 1], rtol=0, atol=1e-10)
    with pytest.raises(ModelError, match="does not take the mean"):
        explain.cam("conv")(net, x, 1)  # before the ReLU


# --- Grad-CAM


@pytest.mark.parametrize(("layer", "module"), [("conv", "conv"), ("norm", "norm")])
@pytest.mark.parametrize("relu", [False, True])
def test_grad_cam_is_captums(layer: str, module: str, relu: bool, x, y, quiet: None) -> None:
    from captum.attr import LayerGradCam

    net = filled(SmallNet(), 5, 2.0).double().eval()
    net.act.inplace = False  # captum looks at the output after the next module has changed it
    method = LayerGradCam(net, getattr(net, module))
    wanted = method.attribute(x, y, relu_attributions=relu).squeeze(1)
    net.act.inplace = True
    explainer = explain.grad_cam(layer, relu)
    found = explainer.layer_map(net, x, y)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert torch.equal(explainer(net, x, y).squeeze(1), found)  # of the input's size already
    assert wanted.abs().max() > 1e-3


def test_grad_cam_is_the_papers(x: Tensor, y: Tensor) -> None:
    net = filled(SmallNet(), 5, 2.0).double().eval()

    def head(act: Tensor) -> Tensor:
        return net.head(torch.relu(net.again(act.clone())).flatten(1))

    with torch.no_grad():
        act = torch.relu(net.again(torch.relu(net.norm(net.conv(x)))))
    wanted = torch.stack([slow.grad_cam(head, a, int(c)) for a, c in zip(act, y, strict=True)])
    found = explain.grad_cam("act#2", relu=False).layer_map(net, x, y)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_grad_cam_without_its_sign_is_no_direction(pooled: nn.Module, x, y) -> None:
    assert not explain.grad_cam().signed and explain.grad_cam(relu=False).signed
    with pytest.raises(InputError, match="unsigned map"):
        attacks.fgsm(Linf(0.1), direction=explain.grad_cam())
    signed = attacks.fgsm(Linf(0.1), direction=explain.grad_cam(relu=False))(pooled, x, y)
    assert not torch.equal(signed.x, x)


def test_signals_and_volumes_have_maps_too(y: Tensor) -> None:
    for conv, shape in ((nn.Conv1d, (2, 9)), (nn.Conv3d, (2, 4, 5, 3))):
        first = conv(2, 4, 2)
        net = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
        x = rand(3, *shape, seed=1)
        net(x)
        maps = explain.grad_cam("1", relu=False)(filled(net, 2), x, 1)
        assert maps.shape == x.shape and torch.equal(maps[:, 0], maps[:, 1])
        assert maps.abs().sum() > 0


def test_what_has_no_map_says_so(pooled: nn.Module, x: Tensor, table: Tensor) -> None:
    with pytest.raises(InputError, match=r"'head' gives \(4,\) for a sample, which is no map"):
        explain.grad_cam("head")(pooled, x, 1)
    with pytest.raises(InputError, match="no module of the net gives maps"):
        explain.grad_cam()(nn.Linear(10, 2).double(), table, 1)
    square = nn.Sequential(nn.Unflatten(1, (1, 2, 5)), nn.Conv2d(1, 2, 1), nn.Flatten())
    net = nn.Sequential(square, nn.Linear(20, 2)).double()
    with pytest.raises(InputError, match="maps of 2 dimensions and the input has 0"):
        explain.grad_cam()(net, table, 1)
    assert explain.grad_cam().layer_map(net, table, 1).shape == (11, 2, 5)
    with pytest.raises(AccessError, match="Ensemble has no layers"):
        explain.grad_cam()(ensemble([pooled, pooled]), x, 1)


def test_normalisation_and_wrappers(pooled: nn.Module, x: Tensor, y: Tensor) -> None:
    plain = explain.grad_cam("norm", relu=False)(pooled, (x - 0.3) / 0.2, y)
    held = wrap(pooled, preprocess=([0.3], [0.2]))
    explainer = explain.grad_cam("norm", relu=False)
    torch.testing.assert_close(explainer(held, x, y), plain, rtol=0, atol=1e-12)
    masked = bpda(pooled, at="norm", backward=lambda a: 0 * a)
    torch.testing.assert_close(explainer(masked, x, y), explainer(pooled, x, y))
    assert explain.saliency()(masked, x, y).abs().max() == 0
