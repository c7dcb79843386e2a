"""Settings of solvers and linear solvers: wrong types and values are refused by name, runtime numbers are not."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import rootdiff as rd
import rootdiff_jax
import rootdiff_torch
from rootdiff import ArgumentError, ArgumentTypeError, linear, solvers

KINDS = [
    kind
    for module in (solvers, linear)
    for kind in vars(module).values()
    if is_dataclass(kind) and not getattr(kind, "__abstractmethods__", None)
]
#: What is no number, no name and no solver.
WRONG = ("1e-8", True, np.array([1e-8, 1e-6]), [1], 1j, float("nan"))


def allowed(annotation):
    """Return which of WRONG a field with this annotation may hold."""
    if annotation == "bool":
        return [True]
    return WRONG if annotation in ("Any", "tuple[Any, ...]") else []


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_every_solver_is_checked(kind):
    required = {"lo": 0.0, "hi": 1.0, "start": (), "solver": rd.Bisection(), "function": len, "solvers": [rd.Newton()]}
    needed = {f.name: required[f.name] for f in fields(kind) if f.name in required}
    kind(**needed)
    for setting in fields(kind):
        for value in WRONG:
            if setting.name in ("function", "solvers") or any(value is v for v in allowed(setting.type)):
                continue
            with pytest.raises((ArgumentError, ArgumentTypeError), match=rf"^{kind.__name__}: {setting.name} is"):
                kind(**(needed | {setting.name: value}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rd.Newton(rtol=np.array([1e-8, 1e-6])), r"Newton: rtol is an array of shape \(2,\).*a number or None"),
        (lambda: rd.Newton(rtol=True), "Newton: rtol is True, a bool; it must be a number or None"),
        (lambda: rd.Newton(max_steps=np.nan), "Newton: max_steps is nan, a float; it must be an integer"),
        (lambda: rd.Newton(rtol="1e-8"), "Newton: rtol is '1e-8', a str"),
        (lambda: rd.Newton(rtol=np.inf), "Newton: rtol is inf; it must be at least 0, and finite, or None"),
        (lambda: rd.SciPy(atol=-1.0), "SciPy: atol is -1.0; it must be at least 0"),
        (lambda: rd.GMRES(restart="a"), "GMRES: restart is 'a', a str; it must be an integer or None"),
        (lambda: rd.Newton(linear=rd.LU), r"Newton: linear is .*\(a class: call it to make one\); it must be a Linear"),
        (lambda: rd.TrustRegion(scale="rows"), "TrustRegion: scale is 'rows'.*'columns' or 'none'"),
    ],
)
def test_the_message_names_class_setting_value_and_what_is_allowed(make, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        make()


def test_numbers_of_every_kind_are_taken():
    for rtol in (1, 1e-8, np.float32(1e-3), np.array(1e-8), torch.tensor(1e-8), jnp.asarray(1e-3)):
        assert rd.Newton(rtol=rtol).rtol is rtol
    assert rd.Newton(max_steps=np.int64(7)).max_steps == 7
    assert rd.TrustRegion(radius=np.inf).radius == np.inf


@dataclass(frozen=True, kw_only=True)
class Noting(rd.Newton):
    """Notes what its `__post_init__` sees."""

    factor: float = field(default=1.0, metadata={"runtime": True})
    seen: ClassVar[list] = []

    def __post_init__(self):
        super().__post_init__()
        self.seen.append((type(self.rtol), type(self.factor), type(self.max_steps)))


def test_a_post_init_sees_the_numbers_that_the_user_gave():
    Noting.seen.clear()
    solver = Noting(rtol=1e-3, factor=2.0)
    y0 = jnp.array([1.0])
    for _ in range(2):
        y = rootdiff_jax.root(lambda y: y * y - 2, y0, solver=solver).y
    np.testing.assert_allclose(y, np.sqrt(2), rtol=1e-3)
    assert set(Noting.seen) == {(float, float, int)}


@dataclass(frozen=True)
class Strict(rd.Chain):
    """Compares the settings of its solvers when it is made."""

    def __post_init__(self):
        super().__post_init__()
        if not self.solvers[0].rtol < 1:
            raise ArgumentError("Strict: rtol must be below 1.")


@pytest.mark.parametrize("package", [rd, rootdiff_torch, rootdiff_jax])
def test_a_post_init_may_compare_the_settings_of_inner_solvers(package):
    one = {rd: np, rootdiff_torch: torch, rootdiff_jax: jnp}[package].asarray([1.0])
    y = package.root(lambda y: y * y - 2, one, solver=Strict([rd.Newton(rtol=1e-3)])).y
    np.testing.assert_allclose(y, np.sqrt(2), rtol=1e-3)


def test_a_traced_setting_is_taken_but_not_a_vector():
    @jax.jit
    def solve(rtol):
        return rootdiff_jax.root(lambda y: y * y - 2, jnp.array([1.0]), solver=rootdiff_jax.Newton(rtol=rtol)).y

    np.testing.assert_allclose(solve(1e-3), np.sqrt(2), rtol=1e-3)
    with pytest.raises(ArgumentTypeError, match="rtol is an array of shape"):
        solve(jnp.array([1e-3, 1e-3]))


@pytest.mark.parametrize("entry", ["root", "fixed_point"])
@pytest.mark.parametrize("n", [1, 3, 70])
def test_settings_of_an_entry_point_reach_every_method_of_auto(monkeypatch, entry, n):
    seen = []
    iterate = rd._loop.iterate

    def noted(solver, *args, **options):
        seen.append((solver.rtol, solver.atol, solver.max_steps))
        return iterate(solver, *args, **options)

    for module in ("rootdiff._loop", "rootdiff.solvers._in_turn"):
        monkeypatch.setattr(f"{module}.iterate", noted)
    settings = {"rtol": 1e-3, "atol": 1e-2, "max_steps": 2}
    sol = getattr(rd, entry)(lambda y: y**2 + 1 + y, 3 * np.ones(n), on_failure="ignore", **settings)
    assert len(seen) >= 2
    assert set(seen) == {(1e-3, 1e-2, 2)}
    assert sol.steps <= 2 * len(seen)


@pytest.mark.parametrize("package", [rd, rootdiff_torch])
def test_settings_of_root_are_those_of_a_named_solver_and_of_a_chain(package):
    one = (np if package is rd else torch).ones(1)
    for solver in ("auto", "newton", rd.Chain([rd.Newton(), rd.Chord()])):
        sol = package.root(lambda y: y**3 - 8, one, solver=solver, max_steps=1, on_failure="ignore")
        assert int(sol.status[()]) == rd.Status.MAX_STEPS


def test_a_setting_that_a_solver_has_not_is_refused():
    class Own(rd.Solver):
        def solve(self, residual, y0):
            raise AssertionError

    with pytest.raises(ArgumentError, match="rtol: the solver Own has no such setting"):
        rd.root(lambda y: y, np.ones(1), solver=Own(), rtol=1e-3)
    with pytest.raises(ArgumentError, match="Auto: max_steps is -1; it must be at least 0"):
        rd.root(lambda y: y, np.ones(1), max_steps=-1)
