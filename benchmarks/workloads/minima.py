"""Minima: curves fitted to data, and penalties of regressions, the hyperparameters of a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.problem import Problem, Row, Workload, newton_reference


def build_curves(batch: int = 4096, m: int = 50) -> Problem:
    """Return peaks on a ground, ``a exp(-((t - c) / s)^2) + d``, in data with errors: four unknowns for each."""
    rng, t = np.random.default_rng(0), np.linspace(0.0, 4.0, m)
    true = np.stack([rng.uniform(*ends, batch) for ends in ((1, 3), (1.5, 2.5), (0.6, 1.2), (-1, 1))], axis=-1)

    def parts(xp: Any, y: Any) -> tuple[Any, ...]:
        a, c, s, d = (y[..., k : k + 1] for k in range(4))
        # a row of times of the same framework as y: the numbers are constants of the program
        row = xp.asarray(t, dtype=y.real.dtype) + 0 * d
        u = (row - c) / s
        return a, s, d, u, xp.exp(-(u**2))

    def equations(xp: Any, y: Any, data: Any) -> Any:
        a, _, d, _, bell = parts(xp, y)
        return a * bell + d - data

    def slopes(xp: Any, y: Any) -> Any:
        a, s, _, u, bell = parts(xp, y)
        return xp.stack([bell, 2 * a * bell * u / s, 2 * a * bell * u**2 / s, xp.ones_like(bell)], -1)

    def residual(xp: Any, y: Any, data: Any) -> Any:
        return (equations(xp, y, data)[..., None, :] @ slopes(xp, y))[..., 0, :]

    def hessian(y: Any, data: Any) -> Any:
        """Return J^T J + sum r_i H_i, the H_i written out."""
        a, s, _, u, bell = parts(np, y)
        r, one, J = equations(np, y, data), np.zeros_like(u), slopes(np, y)
        ac, as_ = 2 * bell * u / s, 2 * bell * u**2 / s
        cc, ss = 2 * a * bell * (2 * u**2 - 1) / s**2, 2 * a * bell * u**2 * (2 * u**2 - 3) / s**2
        cs = 4 * a * bell * u * (u**2 - 1) / s**2
        rows = ((one, ac, as_, one), (ac, cc, cs, one), (as_, cs, ss, one), (one,) * 4)
        second = np.stack([np.stack([np.sum(r * entry, axis=-1) for entry in row], axis=-1) for row in rows], axis=-2)
        return np.swapaxes(J, -1, -2) @ J + second

    return Problem(
        residual=residual,
        equations=equations,
        slopes=lambda y, data: slopes(np, y),
        y0=np.tile([2.0, 2.0, 0.9, 0.0], (batch, 1)),
        args=(equations(np, true, 0.05 * rng.standard_normal((batch, m))),),
        weights=rng.standard_normal((batch, 4)),
        reference=lambda problem: newton_reference(replace(problem, y0=true)),
        accuracy=1e-6,
        batch_ndim=1,
        batched=(True,),
        jacobian=hessian,
        pullback=lambda y, u, data: (-(slopes(np, y) @ u[..., None])[..., 0],),
    )


def build_penalties(samples: int = 10_000, features: int = 50, logistic: bool = False) -> Problem:
    """Return a regression with a ridge penalty for each feature, in the logarithms of the penalties and the data."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((samples, features)) @ (np.eye(features) + 0.3 * rng.standard_normal((features,) * 2))
    linear = X @ rng.standard_normal(features) / features**0.5
    t = (rng.uniform(size=samples) < 1 / (1 + np.exp(-linear))) * 1.0 if logistic else linear
    t = t if logistic else t + rng.standard_normal(samples)

    def mean(xp: Any, z: Any) -> Any:
        return 1 / (1 + xp.exp(-z)) if logistic else z

    def objective(xp: Any, y: Any, p: Any, X: Any, t: Any) -> Any:
        z = X @ y
        # |z| - z is twice the part below zero: no exponential overflows
        loss = xp.log1p(xp.exp(-xp.abs(z))) + (xp.abs(z) + z) / 2 - t * z
        return xp.sum(loss) + xp.sum(xp.exp(p) * y**2) / 2

    def residual(xp: Any, y: Any, p: Any, X: Any, t: Any) -> Any:
        return (mean(xp, X @ y) - t) @ X + xp.exp(p) * y

    def hessian(y: Any, p: Any, X: Any, t: Any) -> Any:
        q = mean(np, X @ y)
        return (X.T * (q * (1 - q) if logistic else 1.0)) @ X + np.diag(np.exp(p))

    def pullback(y: Any, u: Any, p: Any, X: Any, t: Any) -> tuple[Any, ...]:
        q, along = mean(np, X @ y), X @ u
        of_z = along * (q * (1 - q) if logistic else 1.0)
        return np.exp(p) * y * u, np.outer(of_z, y) + np.outer(q - t, u), -along

    squares = {
        "equations": lambda xp, y, p, X, t: xp.concat([X @ y - t, xp.exp(p / 2) * y]),
        "slopes": lambda y, p, X, t: np.concat([X, np.diag(np.exp(p / 2))]),
    }
    return Problem(
        residual=residual,
        **({"objective": objective} if logistic else squares),
        y0=np.zeros(features),
        args=(np.linspace(-2.0, 4.0, features), X, t),
        weights=rng.standard_normal(features),
        reference=newton_reference,
        accuracy=1e-6,
        jacobian=hessian,
        pullback=pullback,
    )


_TORCHOPT = {"linear": "solve_normal_cg", "rtol": 1e-10, "atol": 0.0}
_LEAST = {"call": "least_squares"}


def _rows(differences: str, batched: str = "", newton: str = "") -> tuple[Row, ...]:
    """Return the rows for a sum of squares: why rootdiff in NumPy, and why Newton's method has none."""
    return (
        Row("rootdiff", "auto", _LEAST, cannot=differences),
        Row("rootdiff_torch", "auto", _LEAST),
        Row("rootdiff_jax", "auto", _LEAST),
        Row("SciPy", "lm, Jacobian given", {**_LEAST, "method": "lm", "xtol": 1e-10, "ftol": 1e-12}),
        Row("SciPy", "trf, Jacobian given", {**_LEAST, "method": "trf", "xtol": 1e-10, "ftol": 1e-12}, full=True),
        Row("Optimistix", f"LevenbergMarquardt{batched}", {**_LEAST, "solver": "LevenbergMarquardt"}),
        Row("Optimistix", f"Dogleg{batched}", {**_LEAST, "solver": "Dogleg"}, full=True),
        Row("JAXopt", f"LevenbergMarquardt{batched}", {**_LEAST, "solver": "LevenbergMarquardt", "tol": 1e-9}),
        Row("JAXopt", f"GaussNewton{batched}", {**_LEAST, "solver": "GaussNewton", "tol": 1e-9}, full=True),
        Row("lax.custom_root by hand", f"Newton of the gradient, LU{batched}", cannot=newton),
        Row("PyTorch by hand", f"Newton of the gradient, LU{batched}", cannot=newton),
        Row("TorchOpt", "Newton of the gradient by hand, its implicit gradient", _TORCHOPT, cannot=newton),
    )


CURVES = Workload(
    "Curves fitted to data",
    build_curves,
    {"4096 fits, 50 data each, 4 unknowns": {}},
    _rows(
        "the gradient in 204,800 data by differences is two calls for each",
        ", vmap",
        "from some of these starts Newton's method of the gradient finds no root",
    ),
)

RIDGE = Workload(
    "Penalties of a ridge regression",
    build_penalties,
    {"10,000 data, 50 features": {}},
    _rows("the gradient in 500,000 data by differences is two calls for each"),
)

_MINIMUM = {"call": "minimize"}

LOGISTIC = Workload(
    "Penalties of a logistic regression",
    build_penalties,
    {"10,000 data, 50 features": {"logistic": True}},
    (
        Row("rootdiff", "auto", _MINIMUM, cannot="the gradient in 500,000 data by differences is two calls for each"),
        Row("rootdiff_torch", "auto", _MINIMUM),
        Row("rootdiff_jax", "auto", _MINIMUM),
        Row("SciPy", "L-BFGS-B, gradient given", {**_MINIMUM, "method": "L-BFGS-B", "tol": 1e-12}),
        Row("Optimistix", "BFGS", {**_MINIMUM, "solver": "BFGS"}),
        Row("JAXopt", "LBFGS", {**_MINIMUM, "solver": "LBFGS", "tol": 1e-7, "maxiter": 500}),
        Row("JAXopt", "BFGS", {**_MINIMUM, "solver": "BFGS", "tol": 1e-7}, full=True),
        Row("lax.custom_root by hand", "Newton of the gradient, LU"),
        Row("PyTorch by hand", "Newton of the gradient, LU"),
        Row("TorchOpt", "Newton of the gradient by hand, its implicit gradient", _TORCHOPT),
    ),
)
