"""What breaks a defended model, beside the attack that it looks strong against."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from foible.audit.cells import Cell, Context, Measured, accuracy, attacked
from foible.audit.planning import Plan
from foible.defend import Breaker, breaker


@dataclass(frozen=True)
class BreakerWork:
    """Attack a defended model both ways; the figure is what the adaptive attack leaves."""

    breaker: Breaker
    norm: str

    def __call__(self, context: Context) -> Measured:
        """Attack, and count errors over all samples."""
        threat = context.ball(self.norm)
        found = self.breaker(context.model, context.x, context.y, threat, context.seed)
        naive, interval = accuracy(~found.naive.success)
        said = {
            "norm": self.norm, "title": f"Breaker of {self.breaker.name.replace('_', ' ')}",
            "control": False, "naive": naive, "naive_interval": interval,
            "because": self.breaker.why, "paper": self.breaker.paper,
        }  # fmt: skip
        out = attacked(self.breaker.attack(threat), found.adaptive, context.y, said)
        out.forwards += int(found.naive.forwards.sum())
        out.backwards += int(found.naive.backwards.sum())
        return out


def breaker_cell(plan: Plan, defence: str) -> Cell:
    """Return the cell that breaks a defence: in Linf, or in the first norm of the plan."""
    norms = [str(table["norm"]) for table in plan.attacks]
    norm = "linf" if "linf" in norms else norms[0]
    one = breaker(defence, 20, 10) if plan.name == "quick" else breaker(defence)
    part = {**asdict(one), "norm": norm}
    return Cell("attack", f"breaker-{norm}", part, BreakerWork(one, norm), cost=30.0)
