"""rootdiff for PyTorch, PyTorch by hand, TorchDEQ, TorchOpt, xitorch, and back-propagation through the solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.problem import Calls, Problem


def waited(y: Any) -> Any:
    """Return a tensor when its device has done its work."""
    if y.device.type != "cpu":
        torch.cuda.synchronize()
    return y


def build(problem: Problem, solve: Callable[..., Any], *, call: str = "root", mode: str = "same", device: str) -> Calls:
    """Return the calls of ``solve(f, y0, args) -> (y, steps)``; `mode` "fresh" makes a new closure for every call."""
    function = problem.function(call)
    tensor = lambda array: torch.tensor(array, device=device)  # noqa: E731
    y0, weights = tensor(problem.y0), tensor(problem.weights)
    plain = tuple(map(tensor, problem.args))
    leaves = tuple(tensor(a).requires_grad_() for a in problem.args)

    def bound() -> Callable[..., Any]:
        return lambda y, *args: function(torch, y, *args)

    same = bound()

    def run(args: tuple[Any, ...]) -> tuple[Any, Any]:
        return solve(bound() if mode == "fresh" else same, y0, args)

    def forward() -> tuple[Any, Any]:
        y, steps = run(plain)
        return waited(y), steps

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        y, _ = run(leaves)
        gradients = torch.autograd.grad(torch.sum(y * weights), leaves)
        return waited(y.detach()), gradients

    return Calls(forward, gradient)


def rootdiff_torch(problem: Problem, *, device: str, call: str = "root", mode: str = "same", **options: Any) -> Calls:
    import rootdiff_torch

    function = getattr(rootdiff_torch, call)

    def solve(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        if call == "root_scalar":
            sol = function(f, problem.bracket, *args, **options)
        else:
            sol = function(f, y0, *args, batch_ndim=problem.batch_ndim, **options)
        return sol.y, sol.steps.max()

    return build(problem, solve, call=call, mode=mode, device=device)


def newton(f: Any, y0: Any, args: Any, jacobian: Any, tolerance: float, steps: int = 100) -> tuple[Any, Any, int]:
    """Newton's method as short as it goes; returns the root, its Jacobian, and the steps."""
    y = y0
    with torch.no_grad():
        for step in range(1, steps + 1):  # noqa: B007
            matrix = jacobian(y, *args)
            change = torch.linalg.solve(matrix, f(y, *args))
            y = y - change
            if torch.max(torch.abs(change)) <= tolerance:
                break
        return y, jacobian(y, *args), step


def elementwise_newton(f: Any, y: Any, args: Any, tolerance: float) -> tuple[Any, int]:
    """Newton's method for equations of one unknown each."""
    for step in range(1, 101):  # noqa: B007
        change = f(y, *args) / _slope(f, y, args)
        y = y - change
        if torch.max(torch.abs(change)) <= tolerance:
            break
    return y, step


def _slope(f: Any, y: Any, args: Any) -> Any:
    return torch.func.grad(lambda y: f(y, *args).sum())(y)


def dense_jacobian(problem: Problem, f: Any) -> Callable[..., Any]:
    """Return df/dy by forward mode, for each system of a batch."""
    jacobian = torch.func.jacfwd(f)
    if not problem.batch_ndim:
        return jacobian
    return torch.func.vmap(jacobian, in_dims=(0, *(0 if b else None for b in problem.batched)))


def by_hand(
    problem: Problem, *, device: str, method: str = "newton", tolerance: float = 1e-9, mode: str = "same"
) -> Calls:
    """Solve without a tape, then take one step at the root that autograd follows: exact first derivatives."""

    def by_newton(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        y, matrix, steps = newton(f, y0, tuple(a.detach() for a in args), dense_jacobian(problem, f), tolerance)
        return y - torch.linalg.solve(matrix, f(y, *args)), steps

    def elementwise(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        fixed = tuple(a.detach() for a in args)
        y, steps = elementwise_newton(f, y0, fixed, tolerance)
        return y - f(y, *args) / _slope(f, y, fixed), steps

    def by_iteration(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        fixed = tuple(a.detach() for a in args)
        with torch.no_grad():
            y, steps = _iterate(lambda y: f(y, *fixed), y0, tolerance)
        if not any(a.requires_grad for a in args):
            return y, steps
        value, start = f(y, *args), y.detach().requires_grad_()
        other = f(start, *fixed)  # a graph of its own for the products with the transposed Jacobian
        pull = lambda u: torch.autograd.grad(other, start, u, retain_graph=True)[0]  # noqa: E731
        value.register_hook(lambda w: _iterate(lambda u: w + pull(u), w, tolerance)[0])
        return value, steps

    solve = {"newton": by_newton, "elementwise": elementwise, "fixed point": by_iteration}[method]
    return build(problem, solve, call="fixed_point" if method == "fixed point" else "root", mode=mode, device=device)


def _iterate(step: Callable[[Any], Any], y: Any, tolerance: float) -> tuple[Any, int]:
    """Repeat until the change is small in the Euclidean norm, relative to y."""
    for count in range(1, 501):  # noqa: B007
        new = step(y)
        change, y = torch.linalg.norm(new - y), new
        if change <= tolerance * torch.linalg.norm(new):
            break
    return y, count


def torchdeq(problem: Problem, *, device: str, mode: str = "same", damping: float = 0.0, **options: Any) -> Calls:
    """Find the fixed point of the cell, or of ``y - damping * f(y)``."""
    from torchdeq import get_deq

    deq = get_deq(core="indexing", ift=True, **options)

    def solve(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        step = (lambda y: y - damping * f(y, *args)) if damping else (lambda y: f(y, *args))
        start = y0 if problem.batch_ndim else y0[None]
        function = step if problem.batch_ndim else lambda y: step(y[0])[None]
        roots, info = deq(function, start)
        return roots[-1] if problem.batch_ndim else roots[-1][0], info["nstep"].max()

    return build(problem, solve, call="root" if damping else "fixed_point", mode=mode, device=device)


def torchopt(
    problem: Problem,
    *,
    device: str,
    mode: str = "same",
    method: str = "newton",
    linear: str = "solve_normal_cg",
    tolerance: float = 1e-9,
    **options: Any,
) -> Calls:
    """TorchOpt gives the derivative of a root; the root is found by the Newton's method above."""
    import torchopt as peer

    def solve(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        found = []
        inverse = getattr(peer.linear_solve, linear)(**options)
        arguments = tuple(range(1, 1 + len(args)))

        @peer.diff.implicit.custom_root(f, argnums=arguments, solve=inverse)
        def solver(y: Any, *args: Any) -> Any:
            if method == "elementwise":
                y, steps = elementwise_newton(f, y.detach(), tuple(a.detach() for a in args), tolerance)
            else:
                y, _, steps = newton(f, y, args, dense_jacobian(problem, f), tolerance)
            found.append(steps)
            return y

        start = y0.clone().requires_grad_() if any(a.requires_grad for a in args) else y0
        return solver(start, *args), found[-1]

    return build(problem, solve, mode=mode, device=device)


def xitorch(
    problem: Problem, *, device: str, mode: str = "same", call: str = "rootfinder", backward: Any = None, **options: Any
) -> Calls:
    from xitorch import optimize

    function = getattr(optimize, call)

    def solve(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        return function(f, y0, params=args, bck_options=backward or {}, **options), None

    return build(problem, solve, call="fixed_point" if call == "equilibrium" else "root", mode=mode, device=device)


def unrolled(
    problem: Problem, *, device: str, method: str = "newton", steps: int | None = None, mode: str = "same"
) -> Calls:
    """As many steps as the reference needed, all of them on the tape."""
    count = steps or problem.steps or problem.solved.steps

    def by_newton(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        jacobian, y = dense_jacobian(problem, f), y0
        for _ in range(count):
            y = y - torch.linalg.solve(jacobian(y, *args), f(y, *args))
        return y, count

    def elementwise(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        slope, y = torch.func.grad(lambda y, *args: f(y, *args).sum()), y0
        for _ in range(count):
            y = y - f(y, *args) / slope(y, *args)
        return y, count

    def by_iteration(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        y = y0
        for _ in range(count):
            y = f(y, *args)
        return y, count

    solve = {"newton": by_newton, "elementwise": elementwise, "fixed point": by_iteration}[method]
    return build(problem, solve, call="fixed_point" if method == "fixed point" else "root", mode=mode, device=device)
