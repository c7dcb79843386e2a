"""How often a step waits for a device: once, unless it has a loop in it that it enters every time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import rootdiff_torch
from rootdiff_torch import _backend, _host, _namespace
from rootdiff_torch.cuda import _loops

ONCE = ("newton", "fixed_point", "anderson", "df_sane", "trust_region", "broyden", "chord")
#: What copies a value to the host.
READS = ("__bool__", "__int__", "__float__", "item", "tolist", "cpu", "numpy", "nonzero")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tensors as if on another device, where no value is looked at unasked; and the list of the looks there are."""
    for module in (_backend, _host, _loops, _namespace):
        monkeypatch.setattr(module, "is_on_cpu", lambda tensor: False)
    found: list[str] = []

    def noted(name: str) -> Any:
        original = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            found.append(name)
            return original(self, *args, **kwargs)

        return read

    for name in READS:
        monkeypatch.setattr(Tensor, name, noted(name))
    return found


def weights() -> Tensor:
    return torch.linspace(0.1, 0.5, 8, dtype=torch.float64)


@pytest.mark.parametrize("solver", ONCE)
def test_a_step_waits_for_the_device_once(solver: str, reads: list[str]) -> None:
    method = rootdiff_torch.get_solver(solver, "torch")

    def count(steps: int) -> int:
        reads.clear()
        chosen = type(method)(max_steps=steps, rtol=0.0, atol=0.0)
        start = torch.zeros(64, 8, dtype=torch.float64)
        sol = rootdiff_torch.fixed_point(
            lambda z: torch.cos(weights() * z), start, solver=chosen, batch_ndim=1, on_failure="ignore"
        )
        assert int(sol.steps.max()) == steps
        return len(reads) - 1

    # the first steps may form a Jacobian; later ones of this cell are accepted at once
    assert count(4) - count(3) == 1


@pytest.mark.parametrize("solver", [*ONCE, "levenberg_marquardt", "newton_krylov", "pseudo_transient"])
def test_steps_are_the_same_as_those_that_look_at_once(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far starts, so that steps are rejected, and those that assumed otherwise are taken again."""
    torch.manual_seed(3)
    start, target = 30 * torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)

    def solve() -> list[Tensor]:
        options = {"solver": solver, "batch_ndim": 1, "on_failure": "ignore"}
        sol = rootdiff_torch.root(lambda y, a: a - y - y**3 - torch.sin(3 * y.flip(-1)), start, target, **options)
        return [sol.y, sol.status, sol.steps]

    monkeypatch.setattr(_host, "is_on_cpu", lambda tensor: False)  # NumPy rounds otherwise
    expected = solve()
    for module in (_backend, _loops):
        monkeypatch.setattr(module, "is_on_cpu", lambda tensor: False)
    for found, value in zip(solve(), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=0, equal_nan=True)


def test_a_step_that_is_watched_is_taken_once(reads: list[str]) -> None:
    seen: list[int] = []
    torch.manual_seed(3)
    start = 30 * torch.randn(16, 3, dtype=torch.float64)
    sol = rootdiff_torch.root(
        lambda y: y**3 + y - 1, start, solver="newton", batch_ndim=1, callback=lambda step: seen.append(1)
    )
    assert len(seen) == int(sol.steps.max())
