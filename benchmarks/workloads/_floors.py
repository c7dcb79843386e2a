"""What a dense solve must do, for any problem with its Jacobian written out: the floors that workloads share."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Calls, Problem


def numpy_newton(problem: Problem) -> Calls:
    """Newton's method with the number of steps known, by NumPy's batched solve."""
    jacobian, pullback = problem.jacobian, problem.pullback
    assert jacobian is not None
    assert pullback is not None
    args, steps = problem.args, problem.solved.steps

    def forward() -> tuple[Any, Any]:
        y = problem.y0
        for _ in range(steps):
            y = y - np.linalg.solve(jacobian(y, *args), problem.residual(np, y, *args)[..., None])[..., 0]
        return y, steps

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        y, _ = forward()
        u = np.linalg.solve(np.swapaxes(jacobian(y, *args), -1, -2), problem.weights[..., None])[..., 0]
        return y, tuple(-g for g in pullback(y, u, *args))

    return Calls(forward, gradient)


def numpy_elimination(problem: Problem) -> Calls:
    """Do the same by Gaussian elimination without pivots, with the batch as the last, contiguous axis."""
    jacobian, pullback = problem.jacobian, problem.pullback
    assert jacobian is not None
    assert pullback is not None
    args, steps = problem.args, problem.solved.steps

    def solve(matrix: Any, rhs: Any) -> Any:
        last = np.ascontiguousarray(np.moveaxis(matrix, 0, -1))
        return np.stack(eliminate([list(row) for row in last], list(np.ascontiguousarray(rhs.T))), axis=-1)

    def forward() -> tuple[Any, Any]:
        y = problem.y0
        for _ in range(steps):
            y = y - solve(jacobian(y, *args), problem.residual(np, y, *args))
        return y, steps

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        y, _ = forward()
        u = solve(np.swapaxes(jacobian(y, *args), -1, -2), problem.weights)
        return y, tuple(-g for g in pullback(y, u, *args))

    return Calls(forward, gradient)


def eliminate(matrix: list[list[Any]], rhs: list[Any]) -> list[Any]:
    """Solve systems whose entries are arrays over the batch, NumPy's or JAX's."""
    n, a, x = len(rhs), [list(row) for row in matrix], list(rhs)
    for k in range(n):
        inverse = 1 / a[k][k]
        for i in range(k + 1, n):
            factor = a[i][k] * inverse
            a[i] = [*a[i][: k + 1], *(a[i][j] - factor * a[k][j] for j in range(k + 1, n))]
            x[i] = x[i] - factor * x[k]
    for k in reversed(range(n)):
        x[k] = (x[k] - sum(a[k][j] * x[j] for j in range(k + 1, n))) / a[k][k]
    return x
