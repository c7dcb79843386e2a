"""Solvers of a chain whose turns share one compiled loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from rootdiff._backend import Array, select
from rootdiff._loop import iterate
from rootdiff._residual import Residual
from rootdiff._settings import with_settings
from rootdiff._solver import Claim, Solver, is_believed, named
from rootdiff.solvers._damped import DampedSolver, Model

#: Settings that the loop and the verdict ask for: numbers of the dtype of the unknown, and counts.
_NUMBERS, _COUNTS = ("rtol", "atol"), ("max_steps", "patience", "haste")


def is_together(solver: Solver, residual: Residual) -> TypeGuard[DampedSolver]:
    """Return whether a compiled chain may run a solver in one loop with others; not if a user watches whose steps."""
    compiled = residual.backend.traced and residual.observe is None
    return compiled and isinstance(solver, DampedSolver) and solver.shares_its_loop and is_believed(type(solver))


def in_turns(residual: Residual, solvers: Sequence[Solver], y: Array, turn: Array) -> list[tuple[Solver, Array]]:
    """Return the solvers with whether it is their turn, by an integer scalar: their place among them, from one.

    Those that share the loop of a compiled program are one. `y`, (*batch, n), is the unknown.
    """
    xp = residual.xp
    turns: list[tuple[Solver, Array]] = []
    sharing: dict[bool, list[tuple[Array, DampedSolver]]] = {}
    for place, solver in enumerate(solvers, 1):
        if is_together(solver, residual):
            sharing.setdefault(solver.atol is None, []).append((turn == place, solver))
        else:
            turns.append((solver, turn == place))
    for group in sharing.values():
        masks, members = zip(*group, strict=True)
        together = members[0] if len(members) == 1 else InTurn.of(xp, masks, members, y)
        turns.append((together, xp.any(xp.stack(masks))))
    return turns


def _asked(name: str) -> Any:
    """Return the method that asks the member whose turn it is."""

    def ask(self: InTurn, *args: Any) -> Any:
        return self._of_turn([getattr(member, name)(*args) for member in self.members])

    return ask


@dataclass(frozen=True, kw_only=True)
class InTurn(DampedSolver):
    """The one of several solvers whose turn it is: what is theirs is selected, the residual and its factors are shared.

    Parameters
    ----------
    members : tuple of DampedSolver. With all settings filled in.
    masks : tuple of boolean scalars. Whether it is the turn of each.
    """

    members: Any
    masks: Any
    xp: Any
    haste: Any = 0

    first_radius, weigh, regularised = _asked("first_radius"), _asked("weigh"), _asked("regularised")
    assess, after = _asked("assess"), _asked("after")

    @classmethod
    def of(cls, xp: Any, masks: Sequence[Array], members: Sequence[DampedSolver], y: Array) -> InTurn:
        """Return what takes the turns of these members for unknowns `y`, (*batch, n)."""
        solver = cls(members=tuple(members), masks=tuple(masks), xp=xp)
        zero = xp.zeros_like(xp.any(masks[0]), dtype=y.dtype)
        zeros = {**dict.fromkeys(_NUMBERS, zero), **dict.fromkeys(_COUNTS, xp.astype(zero, xp.int32))}
        settings = {}
        for name, like in zeros.items():
            first, *others = values = [getattr(member, name) for member in members]
            alike = all(value is first or (isinstance(value, int | float) and value == first) for value in others)
            settings[name] = first if alike else solver._of_turn([like + value for value in values])
        return with_settings(solver, **settings)

    def _of_turn(self, answers: Sequence[Any]) -> Any:
        """Return the answer of the member whose turn it is."""
        answer = answers[0]
        for mask, other in zip(self.masks[1:], answers[1:], strict=True):
            answer = select(self.xp, mask, other, answer)
        return answer

    def claim(self, residual: Residual, y0: Array, active: Array, looks: bool = True) -> Claim:
        claim = iterate(self, residual, y0, active, looks)
        methods = [named(claim.raw, member).method for member in self.members]
        return claim._replace(raw=claim.raw._replace(method=self._of_turn(methods)))

    def prepare(self, residual: Residual, model: Model, needed: Array | None) -> tuple[Array, Any]:
        found = [m.prepare(residual, model, mask) for mask, m in zip(self.masks, self.members, strict=True)]
        return self._of_turn([regular for regular, _ in found]), [prepared for _, prepared in found]

    def propose(self, residual: Residual, model: Model, prepared: Any, radius: Array) -> tuple[Array, Array]:
        active, steps = residual.of_active(radius == radius), []
        for mask, member, known in zip(self.masks, self.members, prepared, strict=True):
            steps.append(member.propose(replace(residual, active=active & mask), model, known, radius))
        found: tuple[Array, Array] = self._of_turn(steps)
        return found
