"""What a GPU computes is what the CPU does: roots, statuses, steps and derivatives. Run by `make test-gpu`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace

import rootdiff_jax
import rootdiff_torch
from rootdiff import Status
from rootdiff_torch._namespace import Namespace
from rootdiff_torch.nn import FixedPointLayer

#: PyTorch tells so where the first product of a process is one of a backward pass.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")]

GPU = "cuda"
#: Solvers and adjoints that the two frameworks share.
NATIVE = ("auto", "newton", "chord", "trust_region", "levenberg_marquardt", "newton_krylov", "pseudo_transient")
NATIVE += ("broyden", "anderson", "fixed_point", "df_sane", "scipy:hybr")
ADJOINTS = ("auto", "lu", "lstsq", "gmres", "bicgstab", "cg", "lsmr", "neumann", "one_step", "phantom")
BRACKETING = ("bisection", "bracketed_newton", "chandrupatla", "itp")
#: Products are summed in another order.
ROUNDING = 1e-9

Leaves = tuple[np.ndarray, ...]


def on_torch(device: str, solve: Callable[..., Any], start: Any, args: Leaves, w: np.ndarray) -> dict[str, Any]:
    """Return the root, its status, steps and gradients, by PyTorch."""
    inputs = [torch.tensor(a, device=device, requires_grad=True) for a in args]
    sol = solve(rootdiff_torch, None if start is None else torch.tensor(start, device=device), *inputs)
    assert sol.y.device.type == sol.status.device.type == device
    gradients = torch.autograd.grad(sol.y, inputs, torch.tensor(w, device=device))
    found = {"y": sol.y, "status": sol.status, "steps": sol.steps} | {f"d{k}": g for k, g in enumerate(gradients)}
    return {name: value.detach().cpu().numpy() for name, value in found.items()}


def on_jax(device: str, solve: Callable[..., Any], start: Any, args: Leaves, w: np.ndarray) -> dict[str, Any]:
    """Return the same by JAX, compiled."""
    jax.config.update("jax_enable_x64", True)
    with jax.default_device(jax.devices(device)[0]):
        inputs = tuple(map(jnp.asarray, args))
        first = None if start is None else jnp.asarray(start)

        def root(*inputs: Any) -> tuple[Any, Any]:
            sol = solve(rootdiff_jax, first, *inputs)
            return sol.y, (sol.status, sol.steps)

        @jax.jit
        def both(inputs: Any, w: Any) -> Any:
            y, pull, (status, steps) = jax.vjp(root, *inputs, has_aux=True)
            return {"y": y, "status": status, "steps": steps} | {f"d{k}": g for k, g in enumerate(pull(w))}

        found = both(inputs, jnp.asarray(w))
        assert next(iter(found["y"].devices())).platform == {"cuda": "gpu"}.get(device, device)
        return {name: np.asarray(value) for name, value in found.items()}


FRAMEWORKS = {"torch": on_torch, "jax": on_jax}


@pytest.fixture(params=list(FRAMEWORKS))
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return FRAMEWORKS[request.param]


def same(run: Callable[..., Any], solve: Callable[..., Any], start: Any, args: Leaves, atol: float = ROUNDING) -> None:
    """Compare the GPU with the CPU."""
    w = np.random.default_rng(7).standard_normal(np.shape(args[-1] if start is None else start))
    w = w.astype(args[-1].dtype)
    here, there = run("cpu", solve, start, args, w), run(GPU, solve, start, args, w)
    np.testing.assert_array_equal(there["status"] <= Status.AT_PRECISION, here["status"] <= Status.AT_PRECISION)
    # at the end roundings decide whether a radius is to shrink further
    np.testing.assert_allclose(there["steps"], here["steps"], atol=4)
    for name, value in here.items():
        if name not in ("status", "steps"):
            np.testing.assert_allclose(there[name], value, rtol=atol, atol=atol, err_msg=name)


def cell(z: Any, W: Any, b: Any) -> Any:
    return array_namespace(z).tanh(z @ W.T + b)


def residual(y: Any, W: Any, b: Any) -> Any:
    return cell(y, W, b) - y - 0.1 * y**3


def problem(batch: tuple[int, ...], n: int, dtype: Any = np.float64) -> tuple[np.ndarray, Leaves]:
    rng = np.random.default_rng(n)
    W = rng.standard_normal((n, n))
    W = 0.4 * (W + W.T) / np.linalg.norm(W + W.T, 2)
    start, b = rng.standard_normal((*batch, n)), rng.standard_normal((*batch, n))
    return start.astype(dtype), (W.astype(dtype), b.astype(dtype))


@pytest.mark.parametrize("solver", NATIVE)
@pytest.mark.parametrize(("batch", "n"), [((), 5), ((70,), 5)])
def test_solvers(run: Any, solver: str, batch: tuple[int, ...], n: int) -> None:
    start, args = problem(batch, n)

    def solve(rd: Any, y0: Any, *args: Any) -> Any:
        # the residual is dy/dt of a flow to the root
        chosen = rd.PseudoTransient(mass=-1.0) if solver == "pseudo_transient" else solver
        return rd.root(residual, y0, *args, solver=chosen, batch_ndim=len(batch))

    same(run, solve, start, args, 1e-7)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("batch", [(), (70,)])
def test_adjoints(run: Any, adjoint: str, batch: tuple[int, ...]) -> None:
    start, args = problem(batch, 6)

    def solve(rd: Any, y0: Any, *args: Any) -> Any:
        return rd.fixed_point(cell, y0, *args, solver="newton", adjoint=adjoint, batch_ndim=len(batch))

    if adjoint == "cg":  # the Jacobian of the cell is not symmetric, that of y + W y - b is
        solve = lambda rd, y0, *args: rd.root(
            lambda y, W, b: y + y @ W - b, y0, *args, adjoint="cg", batch_ndim=len(batch)
        )
    same(run, solve, start, args, 1e-7)


@pytest.mark.parametrize("n", [40, 300])
@pytest.mark.parametrize("solver", ["newton", "newton_krylov", "auto"])
def test_larger_systems(run: Any, n: int, solver: str) -> None:
    start, args = problem((), n)
    same(run, lambda rd, y0, *args: rd.root(residual, y0, *args, solver=solver), start, args, 1e-7)


@pytest.mark.parametrize("solver", ["newton", "broyden", "anderson", "auto"])
def test_single_precision(run: Any, solver: str) -> None:
    start, args = problem((70,), 5, np.float32)
    same(run, lambda rd, y0, *args: rd.root(residual, y0, *args, solver=solver, batch_ndim=1), start, args, 2e-4)


@pytest.mark.parametrize("n", [1, 8])
def test_large_batches(run: Any, n: int) -> None:
    """Where elimination, one unknown and the quicker selections have ways of their own."""
    start, args = problem((5000,), n)
    same(run, lambda rd, y0, *args: rd.root(residual, y0, *args, solver="newton", batch_ndim=1), start, args)


@pytest.mark.parametrize("solver", BRACKETING)
def test_brackets(run: Any, solver: str) -> None:
    a = np.linspace(0.5, 3.0, 200)
    same(
        run,
        lambda rd, _, a: rd.root_scalar(lambda y, a: y**3 - a, (0.0, 10.0), a, solver=solver),
        None,
        (a,),
        1e-8,
    )


def test_slow_systems_are_taken_out_of_the_batch(run: Any) -> None:
    rng = np.random.default_rng(3)
    start, scale = rng.uniform(0.5, 1.5, (256, 2)), np.ones((256, 2))
    scale[17] = 1e30

    def f(y: Any, scale: Any) -> Any:
        return y**3 - scale * 0.3

    same(
        run,
        lambda rd, y0, scale: rd.root(f, y0, scale, solver="newton", batch_ndim=1, batched_args=(0,)),
        start,
        (scale,),
        1e-8,
    )


def test_failures_are_those_of_the_cpu(run: Any) -> None:
    """One system without a root: its gradients are NaN, those of the others are not touched."""
    start, a = np.array([[1.0], [1.0], [2.0]]), np.array([[4.0], [-1.0], [9.0]])

    def solve(rd: Any, y0: Any, a: Any) -> Any:
        return rd.root(lambda y, a: y**2 - a, y0, a, solver="newton", batch_ndim=1, on_failure="nan")

    w = np.ones_like(a)
    here, there = run("cpu", solve, start, (a,), w), run(GPU, solve, start, (a,), w)
    np.testing.assert_array_equal(np.isnan(there["d0"]), [[False], [True], [False]])
    for name, value in here.items():
        np.testing.assert_allclose(there[name], value, rtol=1e-9, err_msg=name)


def test_torch_raises_and_names_the_failure() -> None:
    y0 = torch.ones(2, device=GPU, dtype=torch.float64)
    with pytest.raises(rootdiff_torch.ConvergenceError, match="Newton"):
        rootdiff_torch.root(lambda y: y**2 + 1, y0, solver="newton")
    with pytest.raises(rootdiff_torch.ArgumentError, match=r"args\[0\]: it is on device cpu, but y0 is on cuda"):
        rootdiff_torch.root(lambda y, a: y - a, y0, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("solver", ["newton", "fixed_point", "anderson", "broyden", "chord", "df_sane", "trust_region"])
def test_torch_waits_once_a_step(solver: str) -> None:
    method, weights = rootdiff_torch.get_solver(solver, "torch"), torch.linspace(0.1, 0.5, 8, device=GPU).double()

    def count(steps: int) -> int:
        chosen = type(method)(max_steps=steps, rtol=0.0, atol=0.0)
        start = torch.zeros(64, 8, device=GPU, dtype=torch.float64)
        options = {"solver": chosen, "batch_ndim": 1, "on_failure": "ignore"}
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")  # which is itself a warning, the first time
            try:
                rootdiff_torch.fixed_point(lambda z: torch.cos(weights * z), start, **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return len(waits)

    count(2)  # the first call sets up the device's libraries
    assert count(4) - count(3) == 1


def test_torch_transforms() -> None:
    start, args = problem((3,), 4)
    expected: dict[str, Any] = {}
    for device in ("cpu", GPU):
        y0, W, b = (torch.tensor(a, device=device) for a in (start[0], args[0], args[1][0]))

        def root(W: Any, b: Any, y0: Any = y0) -> Any:
            return rootdiff_torch.root(residual, y0, W, b, solver="newton").y

        found = {
            "jvp": torch.func.jvp(lambda b: root(W, b), (b,), (torch.ones_like(b),))[1],
            "hessian": torch.func.hessian(lambda b: root(W, b).sum())(b),
            "vmap": torch.func.vmap(lambda b: root(W, b))(torch.tensor(args[1], device=device)),
            "vmap of grad": torch.func.vmap(torch.func.grad(lambda b: root(W, b).sum()))(
                torch.tensor(args[1], device=device)
            ),
        }
        for name, value in found.items():
            assert value.device.type == device
            array = value.cpu().numpy()
            np.testing.assert_allclose(array, expected.setdefault(name, array), rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_layer_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 16).to(GPU)
    with torch.no_grad():
        linear.weight.mul_(0.5)
    layer = FixedPointLayer(lambda z, x: torch.tanh(linear(z) + x), batch_ndim=1)
    x = torch.randn(32, 16, device=GPU, requires_grad=True)
    with torch.autocast(GPU, dtype, enabled=dtype is not torch.float32):
        z = layer(x)
    z.float().square().sum().backward()
    exact = torch.tanh(linear(z.float()) + x)
    assert torch.allclose(z.float(), exact, atol=1e-3 if dtype is torch.float32 else 3e-2)
    assert x.grad is not None
    assert linear.weight.grad is not None
    assert torch.isfinite(linear.weight.grad).all()


def test_torch_convolutions() -> None:
    """By default PyTorch computes them with ten bits, too few for the tolerance of float32."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(8, 8, 3, padding=1).to(GPU)
    with torch.no_grad():
        conv.weight.mul_(0.5)
    x = torch.randn(4, 8, 16, 16, device=GPU)
    before = torch.backends.cudnn.allow_tf32
    for solver in ("auto", "anderson", "fixed_point", "newton_krylov"):
        conv.zero_grad()
        layer = FixedPointLayer(lambda z, x: torch.tanh(conv(z) + x), batch_ndim=1, solver=solver)
        layer(x).square().sum().backward()
        assert layer.last is not None
        assert bool(layer.last.converged.all())
        assert conv.weight.grad is not None
        assert bool(torch.isfinite(conv.weight.grad).all())
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("solver", ["auto", "anderson", "fixed_point", "newton_krylov"])
def test_jax_layer_of_a_width_at_which_products_would_be_rounded(solver: str) -> None:
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((256, 256)), rng.standard_normal((64, 256)).astype(np.float32)
    W = (0.9 * W / np.linalg.norm(W, 2)).astype(np.float32)

    def loss(W: Any, x: Any) -> Any:
        sol = rootdiff_jax.fixed_point(cell, jnp.zeros_like(x), W, x, solver=solver, batch_ndim=1)
        return jnp.sum(sol.y**2), sol.status

    (_, status), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(W), jnp.asarray(x))
    assert int(jnp.max(status)) <= Status.AT_PRECISION
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_jax_transforms() -> None:
    start, args = problem((3,), 4)
    jax.config.update("jax_enable_x64", True)
    expected: dict[str, Any] = {}
    for device in ("cpu", GPU):
        with jax.default_device(jax.devices(device)[0]):
            y0, W, b = (jnp.asarray(a) for a in (start[0], args[0], args[1][0]))

            def root(W: Any, b: Any, y0: Any = y0) -> Any:
                return rootdiff_jax.root(residual, y0, W, b, solver="newton").y

            found = {
                "jvp": jax.jit(lambda b: jax.jvp(lambda b: root(W, b), (b,), (jnp.ones_like(b),))[1])(b),
                "hessian": jax.jit(jax.hessian(lambda b: root(W, b).sum()))(b),
                "vmap": jax.jit(jax.vmap(lambda b: root(W, b)))(jnp.asarray(args[1])),
            }
        for name, value in found.items():
            array = np.asarray(value)
            np.testing.assert_allclose(array, expected.setdefault(name, array), rtol=1e-8, atol=1e-10, err_msg=name)


GRAPHS = ("newton", "fixed_point", "anderson", "broyden", "chord", "df_sane", "trust_region", "levenberg_marquardt")
GRAPHS += ("newton_krylov", "auto")


@pytest.mark.parametrize("adjoint", ["auto", "lu", "gmres", "neumann"])
@pytest.mark.parametrize("solver", GRAPHS)
def test_torch_recorded_steps(solver: str, adjoint: str) -> None:
    start, args = problem((70,), 12)
    y0, *leaves = (torch.tensor(a, device=GPU) for a in (start, *args))

    def solve(**options: Any) -> list[torch.Tensor]:
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        options |= {"solver": solver, "adjoint": adjoint, "batch_ndim": 1}
        y = rootdiff_torch.fixed_point(cell, y0, *inputs, **options).y
        return [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]

    plain = solve()
    for _ in range(2):
        for found, value in zip(solve(cuda_graph=True), plain, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-10)


def recorded_layer() -> tuple[FixedPointLayer, torch.Tensor]:
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 256).to(GPU)
    with torch.no_grad():
        linear.weight.mul_(0.8)
    layer = FixedPointLayer(
        lambda z, x: torch.tanh(linear(z) + x), solver="fixed_point", adjoint="gmres", cuda_graph=True
    )
    layer.linear = linear
    return layer, torch.randn(128, 256, device=GPU, requires_grad=True)


def test_torch_recordings_leave_no_memory_behind() -> None:
    layer, x = recorded_layer()

    def used() -> list[int]:
        layer(x).square().sum().backward()
        torch.cuda.synchronize()
        return [torch.cuda.memory_allocated(), torch.cuda.memory_reserved()]

    for _ in range(3):
        before = used()
    for _ in range(20):
        after = used()
    assert after == before


def test_torch_recordings_of_a_graph_of_the_gradient() -> None:
    layer, x = recorded_layer()
    layer, x = layer.double(), x.detach().double().requires_grad_()

    def hessian_product() -> torch.Tensor:
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    found = hessian_product()
    layer.cuda_graph = False
    torch.testing.assert_close(found, hessian_product(), rtol=1e-7, atol=1e-9)


def test_torch_constants_are_not_left_in_a_recording_that_was_never_replayed() -> None:
    condition, x = torch.tensor([True, False], device=GPU), torch.zeros(2, device=GPU)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        Namespace.where(condition, 0.123, x)
    del graph
    torch.full((1000,), 7.0, device=GPU)
    torch.testing.assert_close(Namespace.where(condition, 0.123, x).cpu(), torch.tensor([0.123, 0.0]))


def test_torch_says_what_cannot_be_recorded() -> None:
    y0, a = torch.ones(5, 1, device=GPU), torch.linspace(1, 4, 5, device=GPU)[:, None]

    def waits(y: Any) -> Any:
        return y**3 + y - a if y.sum().item() < 1e9 else y

    options: dict[str, Any] = {"solver": "newton", "batch_ndim": 1}
    with pytest.raises(rootdiff_torch.ArgumentError, match="cuda_graph: a step cannot be recorded"):
        rootdiff_torch.root(waits, 1e6 * y0, cuda_graph=True, **options)
    expected = rootdiff_torch.root(waits, y0, **options).y
    found = rootdiff_torch.root(lambda y: y**3 + y - a, y0, cuda_graph=True, **options).y
    torch.testing.assert_close(found, expected)
    for option in ({"verbose": True}, {"history": True}):
        with pytest.raises(rootdiff_torch.ArgumentError, match="cuda_graph"):
            rootdiff_torch.root(waits, y0, cuda_graph=True, **option, **options)
