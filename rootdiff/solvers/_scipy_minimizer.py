"""SciPy's methods for minima."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from scipy import optimize

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff.solvers._scipy_constrained import constrained
from rootdiff.solvers._wrapped import WrappedMinimizer

Method = Literal[
    "trf",
    "dogbox",
    "lm",
    "Nelder-Mead",
    "Powell",
    "CG",
    "BFGS",
    "Newton-CG",
    "L-BFGS-B",
    "TNC",
    "SLSQP",
    "trust-constr",
]
#: Methods of `scipy.optimize.least_squares`; the others are those of `scipy.optimize.minimize`.
OF_SQUARES = ("trf", "dogbox", "lm")
#: Those that take constraints.
CONSTRAINED = ("SLSQP", "trust-constr")
_UNBOUNDED = ("lm", "CG", "BFGS", "Newton-CG")
_WITHOUT_GRADIENT = ("Nelder-Mead", "Powell")


@dataclass(frozen=True, kw_only=True)
class SciPyMinimizer(WrappedMinimizer):
    """A method of `scipy.optimize.least_squares` or `scipy.optimize.minimize`, on the host, one system after the other.

    For `least_squares` and `minimize`. It goes as far as its arithmetic leads; Newton corrections of the gradient
    follow, and whether a point is a minimum is judged by rootdiff. SciPy's own flag is not read.

    Parameters
    ----------
    method : {"trf", "dogbox", "lm"}, of sums of squares; of an objective {"Nelder-Mead", "Powell", "CG", "BFGS", \
"Newton-CG", "L-BFGS-B", "TNC", "SLSQP", "trust-constr"}
        Those of sums of squares take the exact Jacobian, the others the exact gradient, but Nelder-Mead and Powell.
        "lm", "CG", "BFGS" and "Newton-CG" take no bounds.
    rtol, atol : float, optional
        Tolerances on `y`, with the meaning and defaults of `IterativeSolver`.
    max_steps : int
        Iterations, or evaluations of the methods that count these (trf, dogbox, lm, TNC), per system.

    References
    ----------
    Virtanen et al. (2020), "SciPy 1.0".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.SciPyMinimizer(method="L-BFGS-B")
    >>> rootdiff.minimize(lambda y, a: np.sum((y - a) ** 4 + y**2), np.zeros(2), 1.0, solver=solver).y.round(4)
    array([0.4102, 0.4102])
    """

    method: Method = "BFGS"

    @property
    def title(self) -> str:
        return f"{self.method} of SciPy"

    @property
    def of_squares(self) -> bool:  # type: ignore[override]
        return self.method in OF_SQUARES

    @property
    def takes_bounds(self) -> bool:  # type: ignore[override]
        return self.method not in _UNBOUNDED

    @property
    def takes_constraints(self) -> bool:  # type: ignore[override]
        return self.method in CONSTRAINED

    def descend(self, minimised: Residual, residual: Residual, y0: Array) -> tuple[Array, Array]:
        limits = () if residual.box is None else residual.box.limits(y0)
        return residual.backend.on_host(self._solve_batch, _Minimised.of(minimised), y0, *limits)

    def _solve_batch(self, evaluate: Any, jacobian: Any, y0: Any, *limits: Any) -> tuple[Any, Any]:
        """Return the minima, (*batch, n), and the steps, (*batch); all arrays are NumPy's."""
        y, steps = np.array(y0), np.zeros(y0.shape[:-1], dtype=np.int32)
        lo, hi = limits or (np.full_like(y, -np.inf), np.full_like(y, np.inf))
        with np.errstate(all="ignore"):
            for index in np.ndindex(steps.shape):
                free = lo[index] < hi[index]

                def at(point: Any, function: Any, index: Any = index, free: Any = free) -> Any:
                    whole = np.array(y)
                    whole[index][free] = point
                    return np.asarray(function(whole), dtype=np.float64)[index]

                if free.any() and np.all(np.isfinite(at(y[index][free], evaluate))):
                    bounds = (lo[index][free], hi[index][free]) if limits else None
                    slope = lambda point, at=at, free=free: at(point, jacobian)[..., free]  # noqa: E731
                    found = self._solve_one(lambda point, at=at: at(point, evaluate), slope, y[index][free], bounds)
                    y[index][free], steps[index] = found.x, min(found.get("nit", found.get("nfev")), 2**31 - 1)
        return y, steps

    def _solve_one(self, evaluate: Any, slope: Any, start: Any, bounds: Any) -> Any:
        start, eps = start.astype(np.float64), float(np.finfo(start.dtype).eps)
        if self.of_squares:
            within = {} if bounds is None else {"bounds": bounds}
            tolerances = dict.fromkeys(("xtol", "ftol", "gtol"), max(eps, 4e-16))
            return optimize.least_squares(
                evaluate, start, slope, method=self.method, max_nfev=self.max_steps, **tolerances, **within
            )
        count = "maxfun" if self.method == "TNC" else "maxiter"
        if len(evaluate(start)) > 1:
            options = {"method": self.method, "tol": eps, "options": {count: self.max_steps}}
            return constrained(evaluate, slope, start, bounds, options)
        return optimize.minimize(
            lambda point: float(evaluate(point)[0]),
            start,
            method=self.method,
            jac=None if self.method in _WITHOUT_GRADIENT else (lambda point: slope(point)[0]),
            bounds=None if bounds is None else optimize.Bounds(*bounds),
            tol=eps,
            options={count: self.max_steps},
        )


@dataclass(frozen=True)
class _Minimised(Residual):
    """What is minimised, whose Jacobian may have more or fewer rows than unknowns."""

    plain: Residual = field(kw_only=True)

    @classmethod
    def of(cls, plain: Residual) -> _Minimised:
        return cls(plain.function, plain.parameters, plain.backend, plain=plain)

    def _of_y(self, y: Array) -> Array:
        return replace(self.plain, parameters=self.parameters)(y)

    def jacobian(self, y: Array) -> Array:
        return replace(self.plain, parameters=self.parameters).with_jacobian(y)[1]
