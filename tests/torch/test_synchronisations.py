"""How often a step waits for a device: once for the loop, and once for a loop in it that mostly is not entered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import rootdiff_torch
from rootdiff_torch import _namespace
from rootdiff_torch._backend import TorchBackend

#: The loop, the line search or the radius; for those with an older Jacobian, whether it is to be renewed.
MOST = {"newton": 2, "fixed_point": 2, "anderson": 2, "df_sane": 2, "trust_region": 2, "broyden": 3, "chord": 3}
#: What copies a value to the host.
READS = ("__bool__", "__int__", "__float__", "item", "tolist", "cpu", "numpy", "nonzero")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tensors as if on another device, where no value is looked at unasked; and the list of the looks there are."""
    monkeypatch.setattr(TorchBackend, "surely_all", lambda self, mask: False)
    monkeypatch.setattr(_namespace, "_is_readable", lambda x: False)
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


@pytest.mark.parametrize("solver", MOST)
def test_a_step_waits_for_the_device_once_per_loop(solver: str, reads: list[str]) -> None:
    method = rootdiff_torch.get_solver(solver, "torch")
    weights = torch.linspace(0.1, 0.5, 8, dtype=torch.float64)

    def count(steps: int) -> int:
        reads.clear()
        chosen = type(method)(max_steps=steps, rtol=0.0, atol=0.0)
        start = torch.zeros(64, 8, dtype=torch.float64)
        sol = rootdiff_torch.fixed_point(
            lambda z: torch.cos(weights * z), start, solver=chosen, batch_ndim=1, on_failure="ignore"
        )
        assert int(sol.steps.max()) == steps
        return len(reads) - 1

    # the first step may form a Jacobian; later ones of this cell are accepted at once
    assert count(4) - count(3) <= MOST[solver]
