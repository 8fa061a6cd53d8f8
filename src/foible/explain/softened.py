"""Explanations of the softplus twin: smooth maps, which small changes of the input cannot bend."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from foible.core.access import Access
from foible.core.errors import InputError, KindError
from foible.core.explainer import Field
from foible.core.oracle import Run
from foible.core.problem import Objective
from foible.core.randomness import Draw
from foible.core.rows import Rows
from foible.explain.base import Explanation
from foible.explain.relevance import Lrp
from foible.explain.rules import Ruled
from foible.models.twins import Softening, SoftplusTwin


@dataclass(frozen=True)
class Smoothed(Explanation):
    """The same explanation of the model with softplus in place of every ReLU.

    inner: the explainer. beta: the sharpness of the softplus; the smaller, the smoother the map,
    and the further from the ReLU net's own. The model's labels and scores in use are untouched.
    """

    inner: Explanation
    beta: float = 2.0
    access = Access.INTERNALS
    additive = False  # its maps add up to differences of the smoothed model, not of the asked one

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise InputError(f"beta={self.beta}: above 0")
        if isinstance(self.inner, Ruled | Lrp):
            raise KindError(
                f"{type(self.inner).__name__} has rules of its own for ReLUs, and a softplus has "
                "none of them: smooth a method of gradients, e.g. foible.explain.saliency()"
            )

    @property
    def signed(self) -> bool:  # type: ignore[override]
        """As the explainer within."""
        return self.inner.signed

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """As the explainer within."""
        return self.inner.differentiable

    @property
    def verb(self) -> str:  # type: ignore[override]
        """As the explainer within."""
        return self.inner.verb

    @property
    def samples(self) -> int:
        """How many points the explainer within looks at, for a row."""
        return self.inner.looks

    def explained(self) -> Objective:
        """Return what the explainer within explains."""
        return self.inner.explained()

    def attribute(
        self, field: Field, rows: Rows, draw: Draw, *, create_graph: bool = False
    ) -> Tensor:
        """As the explainer within; raises InputError for a model without ReLUs."""
        model = field.oracle.model
        if isinstance(model, SoftplusTwin):  # as attacks on maps search it: no ReLU is left
            with model.at(self.beta):
                return self.inner.attribute(field, rows, draw, create_graph=create_graph)
        softening = Softening(self.beta)

        def look(run: Run, x: Tensor) -> Tensor:
            return run(x, softening)

        with field.oracle.through(look):
            found = self.inner.attribute(field, rows, draw, create_graph=create_graph)
        if softening.found == 0:
            raise InputError(
                "no ReLU was found to smooth: without kinks the model's maps are smooth as they "
                "are, and other kinks, such as a leaky ReLU's, are not softened"
            )
        return found


def smoothed(explainer: Explanation, beta: float = 2.0) -> Smoothed:
    """Return an explainer of the softplus twin: a defence (X4, Dombrowski et al. 2019).

    The map of a ReLU net jumps wherever a kink is crossed, and `foible.attacks.bend` crosses many;
    that of a softplus net moves with x, the less the smaller `beta` is. For gradients it is about
    SmoothGrad at the cost of one. It does not say what the ReLU net's own gradient is. Bend it, to
    see what is left: `foible.attacks.bend(threat, smoothed(explainer))`.

    >>> import foible, torch
    >>> net, x = foible.zoo.load("standard"), foible.zoo.sample()[0][:2]
    >>> twin = foible.models.softplus_twin(net, 2.0)
    >>> plain = foible.explain.saliency()
    >>> torch.allclose(smoothed(plain, 2.0)(net, x, 1), plain(twin, x, 1), atol=1e-6)
    True
    """
    return Smoothed(explainer, beta)
