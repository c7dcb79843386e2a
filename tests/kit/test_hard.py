"""No false alarm: residuals that are right but hard pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rootdiff.testing import check_residual, make_case

FAST: Any = {"solvers": ["newton", "broyden"], "adjoints": ["lu", "gmres"]}


def _rows(y: Any, rows: Any) -> Any:
    return torch.stack(rows) if isinstance(y, torch.Tensor) else np.stack(rows)


def kinks(y: Any, a: Any) -> Any:
    """|y| and max(y, 0.2) have their kinks away from the root."""
    return _rows(y, [y[0] + 0.5 * abs(y[1] - 3) - a[0], y[1] + 0.3 * abs(y[0] + 0.1) - a[1] * a[0]])


def scaled_rows(y: Any, a: Any) -> Any:
    """Equations in units that differ by 1e8."""
    return _rows(y, [1e8 * (y[0] ** 3 + y[1] - a[0]), y[1] * 2 - 0.3 * y[0] - a[1]])


def scaled_unknowns(y: Any, a: Any) -> Any:
    """Unknowns near 1e-8 and 1e8."""
    p, q = 1e8 * y[0], 1e-8 * y[1]
    return _rows(y, [p**2 + q - a[0], q - 0.3 * p * a[1] - 0.7])


def scaled_parameters(y: Any, a: Any) -> Any:
    """Parameters near 1e8 and 1e-8."""
    return _rows(y, [y[0] ** 3 + y[1] - 1e-8 * a[0], y[1] * 2 - 0.3 * y[0] - 1e8 * a[1]])


def several_roots(y: Any, a: Any) -> Any:
    """Nine roots; solvers may reach different ones."""
    return (
        y * (y**2 - a[:2]) + 0.01 * y[::-1]
        if not isinstance(y, torch.Tensor)
        else y * (y**2 - a[:2]) + 0.01 * y.flip(0)
    )


def exponential(y: Any, a: Any) -> Any:
    """A diode against a resistor: slopes from 1e-10 to 1e2."""
    exp = torch.exp if isinstance(y, torch.Tensor) else np.exp
    return a[0] - y - 1e-8 * a[1] * (exp(y / 0.05) - 1)


def rotation(y: Any, a: Any) -> Any:
    """A skew Jacobian: no symmetric part to lean on."""
    return _rows(y, [5 * y[1] - a[0] + 0.1 * y[0] ** 3, -5 * y[0] - a[1] + 0.1 * y[1] ** 3])


def insensitive(y: Any, a: Any) -> Any:
    """The root hardly depends on the second parameter."""
    return _rows(y, [y[0] ** 3 + y[1] - a[0], y[1] + 1e-6 * a[1] * y[0] - 0.4])


HARD = {
    "kinks away from the root": (kinks, [1.0, 1.0], [2.0, 0.5]),
    "equations scaled to 1e8": (scaled_rows, [1.3, 0.6], [2.0, 0.5]),
    "unknowns scaled to 1e8": (scaled_unknowns, [1e-8, 1e8], [2.0, 0.5]),
    "parameters scaled to 1e8": (scaled_parameters, [1.0, 1.0], [2e8, 0.5e-8]),
    "several roots": (several_roots, [1.2, -0.9], [1.0, 2.0]),
    "exponential": (exponential, [0.6], [5.0, 1e-2]),
    "skew Jacobian": (rotation, [0.1, 0.1], [1.0, 2.0]),
    "parameter of little effect": (insensitive, [1.0, 0.5], [2.0, 1.0]),
    "root at zero": (lambda y, a: y + y**3 - a[0] * y**2, [0.3, -0.2], [0.7]),
    "start at the root": (lambda y, a: y - a, [0.25, 0.5], [0.25, 0.5]),
    "no parameters": (lambda y: y**3 - 2, [1.0, 1.5], None),
    "parameter without effect": (lambda y, a: y**3 - a[0] + 0 * a[1], [1.0], [2.0, 1.0]),
}
#: These have a condition at which NumPy's differences leave few digits, so that a comparison may be inconclusive.
FAMILIES = {
    "stiff": {},
    "linear": {"condition": 1e8},
    "quadratic": {},
    "sparse": {"unknowns": 12},
    "contraction": {"unknowns": 30, "parameters": 40},
}


def subject(name: str, make: Any) -> Any:
    f, y0, a = HARD[name]
    return (f, make(y0)) if a is None else (f, make(y0), make(a))


def _options(name: str) -> Any:
    """Only LU can solve with units that differ by 1e16, and the others say so."""
    return FAST | ({"adjoints": ["lu"]} if "unknowns scaled" in name else {})


@pytest.mark.parametrize("name", HARD)
def test_numpy(name: str) -> None:
    check_residual(*subject(name, np.array), **_options(name))


@pytest.mark.parametrize("name", HARD)
def test_torch(name: str) -> None:
    report = check_residual(*subject(name, lambda v: torch.tensor(v, dtype=torch.float64)), **_options(name))
    compared = [check for check in report.checks if check.name == "gradient (vjp)" and check.outcome == "passed"]
    assert compared or name == "no parameters"  # not all inconclusive


@pytest.mark.parametrize("name", [name for name in HARD if "1e8" not in name])
def test_torch_float32(name: str) -> None:
    check_residual(*subject(name, lambda v: torch.tensor(v, dtype=torch.float32)), solvers=["newton"], adjoints=["lu"])


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, backend: str) -> None:
    case = make_case(family, np.random.default_rng(3), **FAMILIES[family])
    modes = ["vjp", "jvp"] if family == "contraction" else ["vjp", "jvp", "hessian"]
    check_residual(case.f, case.y0, case.theta, backends=[backend], modes=modes, **FAST)


def test_batch_of_hard_and_easy() -> None:
    def f(y: Any, a: Any) -> Any:
        return np.tanh(y) * 3 + y - a

    starts = np.array([[0.1], [20.0], [-3.0]])
    check_residual(f, starts, np.array([[0.5], [1.5], [-40.0]]), batch_ndim=1, solvers=["newton"], adjoints=["lu"])


def test_fixed_point() -> None:
    weights = np.array([[0.3, -0.4, 0.1], [0.2, 0.1, -0.3], [0.0, 0.5, 0.2]])

    def cell(z: Any, x: Any) -> Any:
        return np.tanh(weights @ z + x)

    report = check_residual(
        cell, np.zeros(3), np.array([0.1, -0.2, 0.4]), entry="fixed_point", solvers=["anderson", "fixed_point"]
    )
    assert any(check.solver == "anderson" and check.name == "gradient (vjp)" for check in report.checks)


def test_pytrees_and_leaves_that_are_no_parameters() -> None:
    def f(y: Any, args: Any) -> Any:
        return {"u": y["u"] ** 3 - args["gain"] * args["drive"], "v": 2 * y["v"] - args["power"] * y["u"][:1]}

    y0 = {"u": np.ones(2), "v": np.ones(1)}
    args = {"gain": 2.0, "drive": np.array([1.0, 3.0]), "power": 3, "label": "x", "none": None}
    check_residual(f, y0, args, solvers=["newton"], adjoints=["lu"])


def test_complex_unknown() -> None:
    def f(z: Any, a: Any) -> Any:
        return z**2 + (0.3 + 0.2j) * abs(z) ** 2 - a * (1 + 0.5j)

    z0 = torch.tensor([1.0 + 0.2j], dtype=torch.complex128)
    check_residual(f, z0, torch.tensor([1.3], dtype=torch.float64), solvers=["newton"], adjoints=["lu"])
