"""rootdiff for NumPy, and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np

import rootdiff
from benchmarks.problem import Calls, Problem


def rootdiff_numpy(problem: Problem, *, call: str = "root", given: bool = False, **options: Any) -> Calls:
    """`given`: with the derivatives that the problem writes out."""
    rules = _given(problem) if given else {}

    def solve() -> rootdiff.Solution:
        if call == "root_scalar":
            return rootdiff.root_scalar(_bound(problem), problem.bracket, *problem.args, **options)
        function, start = getattr(rootdiff, call), _bound(problem, call)
        return function(start, problem.y0, *problem.args, batch_ndim=problem.batch_ndim, **rules, **options)

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        sol = solve()
        return sol.y, sol.vjp(problem.weights)

    def forward() -> tuple[Any, Any]:
        sol = solve()
        return sol.y, np.max(sol.steps)

    return Calls(forward, gradient)


def scipy(problem: Problem, *, method: str, call: str = "root", **options: Any) -> Calls:
    """Roots only: SciPy has no derivative of a root. One system after the other, elementwise methods all at once."""
    from scipy import optimize
    from scipy.optimize import elementwise

    f, args = _bound(problem, call), problem.args
    entries = {"least_squares": optimize.least_squares, "minimize": optimize.minimize}
    find, jacobians = entries.get(call, optimize.root), {"least_squares": problem.slopes, "minimize": _bound(problem)}

    def forward() -> tuple[Any, Any]:
        if method == "find_root":
            found = elementwise.find_root(f, problem.bracket, args=args, **options)
            return found.x, np.max(found.nit)
        if method == "newton":
            return optimize.newton(f, problem.y0, args=args, **options), None
        jac = jacobians.get(call, problem.jacobian if method in ("hybr", "lm") else None)
        if not problem.batch_ndim:
            found = find(f, problem.y0, args=args, method=method, jac=jac, **options)
            return found.x, found.get("nit", found.get("nfev"))
        systems = map(problem.system, range(len(problem.y0)))
        found = [find(f, y0, args=one, method=method, jac=jac, **options) for y0, one in systems]
        return np.stack([each.x for each in found]), max(each.nfev for each in found)

    return Calls(forward, None)


def _bound(problem: Problem, call: str = "root") -> Any:
    function = problem.function(call)
    return lambda y, *args: function(np, y, *args)


def _given(problem: Problem) -> dict[str, Any]:
    """Return the derivatives that the problem writes out, as `rootdiff.root` takes them."""
    jacobian, pullback = problem.jacobian, problem.pullback
    assert pullback is not None
    if jacobian is not None:
        transposed = lambda y, u, *args: np.einsum("...ji,...j->...i", jacobian(y, *args), u)  # noqa: E731
        if problem.y0.ndim == problem.batch_ndim:  # one unknown each
            transposed = lambda y, u, *args: jacobian(y, *args) * u  # noqa: E731
        return {"jac": jacobian, "vjp": _vjp(transposed, pullback)}
    forward, args_forward = problem.pushforward, problem.args_forward
    assert forward is not None
    assert args_forward is not None
    back = forward if problem.symmetric else problem.transposed

    def jvp(primals: Any, tangents: Any) -> Any:
        y, *args = primals
        return forward(y, tangents[0], *args) + args_forward(y, tangents[1:], *args)

    return {"jvp": jvp, "vjp": _vjp(back, pullback)}


def _vjp(transposed: Any, pullback: Any) -> Any:
    return lambda primals, u: (transposed(primals[0], u, *primals[1:]), *pullback(primals[0], u, *primals[1:]))
