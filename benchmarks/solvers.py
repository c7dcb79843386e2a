"""The table solver x problem: rootdiff's solvers beside SciPy, Optimistix, JAXopt and CasADi, on the 80 starts.

A cell is ``steps/residuals/Jacobians`` where the point returned has max|f| < 1e-9, with a dot for what a library does
not tell; ``-`` where it failed and said so; ``FALSE`` where it claimed success at a point that is no root; ``missed``
where it reported failure at a root; ``cannot`` where it cannot state the problem, with the reason below the table.

    python benchmarks/solvers.py --solvers newton,scipy:hybr --problems wood-4 --markdown table.md
    python benchmarks/solvers.py --markdown table.md --page docs/solvers.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import rootdiff
from rootdiff.testing import Attempt, judge, summary
from rootdiff.testing._check_residual import system_solvers
from rootdiff.testing._measure import Calls, attempt
from rootdiff.testing.problems import LIBRARY, MINPACK, Problem, all_problems

_LIMIT = 1000
#: Tighter than the 1e-9 that counts, so that no peer fails for having stopped too early.
_TOLERANCE = 1e-12
Solve = Callable[[Problem, int, Any], Attempt]
_PACKAGES = ("numpy", "scipy", "jax", "optimistix", "jaxopt", "casadi")
_PAGE = """# How the solvers compare

<!-- written by: python benchmarks/solvers.py --page docs/solvers.md -->

All solvers from the same {starts} starts, {rooted} of which have a root: the square systems of Moré, Garbow & Hillstrom
(1981) at the sizes of MINPACK's driver, from the standard start and from ten and a hundred times as far, and the 23
systems of SciML's NonlinearProblemLibrary. A root counts as solved where max |f| < 1e-9, whatever the solver says.
*Success at no root* is the failure that nobody notices.

{table}

`auto` is what `root` does by default. Of the {rooted}, {together}.

rootdiff runs on {backend} here, with its default tolerances; the other libraries are asked for 1e-12, and allowed 1000
steps where they take a limit. *Failure at a root* may also mean that a library found the root, but not to these digits.
*of* counts the starts that a library can state: a symbol of CasADi takes no residual that branches on the value of y.

`rootdiff.testing.measure` runs the same measure on any solver, your own too.
Versions: {versions}.
"""


class CannotSolveError(Exception):
    """A library cannot state a problem; the message says why."""


def scipy_solve(method: str, problem: Problem, start: int, y0: Any) -> Attempt:
    """SciPy's own `root` and its own flag, with the Jacobian for the methods that take one."""
    from scipy import optimize

    calls = Calls(problem)
    jac = calls.jacobian if method in ("hybr", "lm") else None
    try:
        result = optimize.root(calls.residual, y0, (problem.theta,), method=method, jac=jac, tol=_TOLERANCE)
        y, claimed, status = result.x, bool(result.success), str(result.message)
        steps = int(result.nit) if "nit" in result else None
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        y, claimed, status, steps = y0, False, str(error), None
    counts = {"steps": steps, "residual_calls": calls.residuals, "jacobian_calls": calls.jacobians}
    return judge(problem, start, y, claimed, status, **counts)


def optimistix_solve(name: str, problem: Problem, start: int, y0: Any) -> Attempt:
    """Optimistix' `root_find`; compiled, so that evaluations cannot be counted."""
    import jax
    import optimistix

    jax.config.update("jax_enable_x64", True)
    solver = getattr(optimistix, name)(rtol=1e-10, atol=_TOLERANCE)
    theta = jax.numpy.asarray(problem.theta)
    result = optimistix.root_find(problem.residual, solver, jax.numpy.asarray(y0), theta, throw=False, max_steps=_LIMIT)
    claimed = bool(result.result == optimistix.RESULTS.successful)
    return judge(problem, start, result.value, claimed, str(result.result), steps=int(result.stats["num_steps"]))


@cache
def jaxopt_program(problem: Problem) -> Callable[..., Any]:
    """Return JAXopt's Broyden for one problem, compiled once for all starts."""
    import jax
    import jaxopt

    return jax.jit(jaxopt.Broyden(problem.residual, maxiter=_LIMIT, tol=_TOLERANCE).run)


def jaxopt_solve(problem: Problem, start: int, y0: Any) -> Attempt:
    """JAXopt's Broyden, whose success is an error below its tolerance."""
    import jax

    jax.config.update("jax_enable_x64", True)
    y, state = jaxopt_program(problem)(jax.numpy.asarray(y0), jax.numpy.asarray(problem.theta))
    return judge(problem, start, y, bool(state.error <= _TOLERANCE), str(state.error), steps=int(state.iter_num))


def casadi_solve(plugin: str, problem: Problem, start: int, y0: Any) -> Attempt:
    """CasADi's rootfinder on the residual written out in its symbols, which NumPy's object arrays carry."""
    import casadi

    casadi.SX.arctan2 = casadi.atan2  # the name that NumPy calls on the entries of an object array
    symbols = casadi.SX.sym("y", problem.n)
    y = np.array([symbols[place] for place in range(problem.n)], dtype=object)
    theta = np.array([casadi.SX(float(value)) for value in problem.theta], dtype=object)
    try:
        equations = {"x": symbols, "g": casadi.vertcat(*problem.residual(y, theta))}
    except RuntimeError as error:
        raise CannotSolveError("the residual branches on the value of y, which an SX symbol does not have") from error
    options: dict[str, Any] = {"error_on_fail": False, "abstol": _TOLERANCE, "max_iter": _LIMIT}
    options |= {"strategy": "linesearch"} if plugin == "kinsol" else {"abstolStep": _TOLERANCE}
    solver = casadi.rootfinder("solver", plugin, equations, options)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        root = np.array(solver(x0=y0)["x"]).ravel()
    stats = solver.stats()
    return judge(problem, start, root, bool(stats["success"]), "", steps=stats.get("iter_count"))


PEERS: dict[str, Solve] = {
    **{f"SciPy {method}": partial(scipy_solve, method) for method in ("hybr", "lm", "krylov", "df-sane")},
    **{f"Optimistix {name}": partial(optimistix_solve, name) for name in ("Newton", "Dogleg", "LevenbergMarquardt")},
    "JAXopt Broyden": jaxopt_solve,
    **{f"CasADi {plugin}": partial(casadi_solve, plugin) for plugin in ("newton", "kinsol")},
}


def ours(name: str, backend: str, problem: Problem, start: int, y0: Any) -> Attempt:
    """One of rootdiff's solvers on one backend."""
    if backend == "torch":
        import torch

        import rootdiff_torch

        return attempt(name, problem, start, y0, rootdiff_torch.root, torch.asarray)
    if backend == "jax":
        import jax

        import rootdiff_jax

        jax.config.update("jax_enable_x64", True)
        return attempt(name, problem, start, y0, rootdiff_jax.root, jax.numpy.asarray)
    return attempt(name, problem, start, y0, rootdiff.root, np.asarray)


def contenders(names: list[str] | None, backend: str) -> dict[str, Solve]:
    """Return rootdiff's native solvers and the peers, or those named."""
    every = {name: partial(ours, name, backend) for name in system_solvers(backend)}
    natives = [name for name in every if ":" not in name and name != "fixed_point"]
    chosen = [*natives, *PEERS] if names is None else names
    table = {**every, **PEERS}
    unknown = [name for name in chosen if name not in table]
    if unknown:
        raise SystemExit(f"unknown solvers {unknown}; there are {', '.join(table)}")
    return {name: table[name] for name in chosen}


def starts(names: list[str] | None, tries: int | None) -> Iterator[tuple[Problem, int, Any]]:
    """Yield each problem with the power of ten of its start and the start."""
    problems = (*MINPACK, *LIBRARY) if names is None else [p for p in all_problems() if p.name in names]
    for problem in problems:
        for power, y0 in enumerate(problem.starts(tries)):
            yield problem, power, y0


def cell(result: Attempt | CannotSolveError) -> str:
    """Return the cell of a result."""
    if isinstance(result, CannotSolveError):
        return "cannot"
    if result.false_success:
        return f"FALSE ({result.residual_norm:.0e})"
    if result.missed:
        return "missed"
    if not result.solved:
        return "-"
    counts = (result.steps, result.residual_calls, result.jacobian_calls)
    return "/".join("." if count is None else str(count) for count in counts)


def attempted(solve: Solve, problem: Problem, start: int, y0: Any) -> Attempt | CannotSolveError:
    try:
        return solve(problem, start, y0)
    except CannotSolveError as error:
        return error


def markdown(results: dict[str, list[Attempt | CannotSolveError]], rows: list[tuple[Problem, int, Any]]) -> str:
    """Return the table, its sums and the reasons for what could not be stated."""
    head = ["problem", "start", *results]
    lines = [head, ["---"] * len(head)]
    for place, (problem, power, _) in enumerate(rows):
        lines.append([problem.name, f"{10**power}x", *(cell(column[place]) for column in results.values())])
    done = {name: [a for a in column if isinstance(a, Attempt)] for name, column in results.items()}
    for key in ("solved", "false_success", "missed"):
        lines.append([f"**{key}**", "", *(f"**{summary(column)[key]}/{len(column)}**" for column in done.values())])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text += f"\n\nSolved by at least one of these: {_together(results.values())} of {len(rows)}.\n"
    for name, column in results.items():
        for place, result in enumerate(column):
            if isinstance(result, CannotSolveError):
                text += f"\n- {name}, {rows[place][0].name}: {result}."
    return text


def page(
    results: dict[str, list[Attempt | CannotSolveError]], rows: list[tuple[Problem, int, Any]], backend: str
) -> str:
    """Return the page of the documentation: what each contender solved, and whether it told the truth."""
    rooted = sum(problem.has_root for problem, _, _ in rows)
    lines = [["contender", "solved", "of", "success at no root", "failure at a root"], ["---", *["---:"] * 4]]
    for name, column in results.items():
        done = [attempt for attempt in column if isinstance(attempt, Attempt)]
        stated = sum(
            problem.has_root for (problem, _, _), a in zip(rows, column, strict=True) if isinstance(a, Attempt)
        )
        counts = summary(done)
        label = name if name in PEERS else f"`{name}`"
        lines.append([label, *map(str, (counts["solved"], stated, counts["false_success"], counts["missed"]))])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    others = [name for name in results if name in PEERS]
    scipy = _together(results[name] for name in others if name.startswith("SciPy"))
    every = _together(results[name] for name in others)
    together = f"the methods of SciPy solve {scipy} together, all other libraries {every}"
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return _PAGE.format(
        starts=len(rows), rooted=rooted, table=table, together=together, versions=versions, backend=backend
    )


def _together(columns: Iterable[list[Attempt | CannotSolveError]]) -> int:
    """Return how many starts at least one of the columns solved."""
    return sum(any(isinstance(a, Attempt) and a.solved for a in row) for row in zip(*columns, strict=True))


def gradients(backend: str) -> str:
    """Return the largest relative error of dy/dtheta at each regular root in the table of references."""
    from tests.harness import HARNESSES
    from tests.references import stored

    lines = ["| problem | error |", "| --- | --- |"]
    for problem in all_problems():
        for y, derivative in stored().get(problem.name, []):
            near, w = y + 1e-6 * np.maximum(np.abs(y), 0.1), 1.0 + np.arange(problem.n) / 7
            outcome = HARNESSES[backend]().vjp(problem.residual, near, problem.theta, w=w, solver="newton")
            error = np.max(np.abs(outcome.derivative[0] - w @ derivative)) / np.max(np.abs(derivative))
            lines.append(f"| {problem.name} | {error:.1e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", type=lambda text: text.split(","), help="names, separated by commas; default all")
    parser.add_argument("--problems", type=lambda text: text.split(","), help="names; default the 80 starts")
    parser.add_argument("--tries", type=int, help="starts per problem, 1 to 3; default those of the source")
    parser.add_argument("--backend", choices=("numpy", "torch", "jax"), default="numpy")
    parser.add_argument("--gradients", action="store_true", help="errors of dy/dtheta instead of the table")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    parser.add_argument("--page", type=Path, help="file to write the page of the documentation to")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    if options.gradients:
        text = gradients(options.backend)
    else:
        rows = list(starts(options.problems, options.tries))
        results = {}
        for name, solve in contenders(options.solvers, options.backend).items():
            print(name, file=sys.stderr, flush=True)
            results[name] = [attempted(solve, *row) for row in rows]
        text = markdown(results, rows)
        if options.page:
            options.page.write_text(page(results, rows, options.backend), encoding="utf-8")
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
