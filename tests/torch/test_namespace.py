"""The namespace that solvers see in PyTorch: the values of array_api_compat's, with fewer passes over memory."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rootdiff_torch
from rootdiff import _loop
from rootdiff._space import norm2
from rootdiff_torch._backend import BACKEND

OURS = BACKEND.xp
SHAPES = [((), ()), ((1,), (1,)), ((3, 1), (3, 4)), ((100, 1), (100, 64)), ((1, 64), (100, 64)), ((8192,), (8192,))]
MASKS = {"all": torch.ones_like, "none": torch.zeros_like, "some": torch.clone}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("small", "large"), SHAPES)
def test_where_selects_as_the_standard_does(kind: str, small: tuple[int, ...], large: tuple[int, ...]) -> None:
    mask = MASKS[kind](torch.randn(small) > 0)
    values = [torch.randn(large), torch.randn(small), torch.randn(large).double(), torch.randint(9, large), mask]
    values += [torch.randint(9, large, dtype=torch.int32), 1, 2.0, True, float("nan")]
    for a in values:
        for b in values:
            found, expected = OURS.where(mask, a, b), xp.where(mask, a, b)
            assert found.dtype == expected.dtype
            assert found.shape == expected.shape
            assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_where_returns_the_only_array_that_is_selected() -> None:
    a, b = torch.ones(8192), torch.zeros(8192)
    assert OURS.where(a > 0, a, b) is a
    assert OURS.where(a < 0, a, b) is b


@pytest.mark.parametrize("size", [3, 8192])
@pytest.mark.parametrize("value", [0.0, float("inf"), -float("inf"), float("nan"), 3e38])
def test_isfinite_is_that_of_torch(value: float, size: int) -> None:
    x = torch.ones(size)
    x[1:3] = value  # two of 3e38 sum to infinity
    assert torch.equal(OURS.isfinite(x), torch.isfinite(x))
    assert torch.equal(OURS.isfinite(x.to(torch.int32)), torch.ones(size, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_norms_neither_overflow_nor_underflow(dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    sizes = torch.tensor([1.0, limits.max / 8, limits.tiny * 8, 0.0], dtype=dtype)
    x = sizes[:, None] * torch.tensor([0.5, -0.5, 0.5, 0.5], dtype=dtype)  # of Euclidean length one
    assert torch.allclose(norm2(OURS, x), sizes, rtol=4 * limits.eps, atol=0.0)


def test_a_norm_does_not_depend_on_the_other_systems() -> None:
    x = torch.randn(64, 3)
    extreme = torch.cat([x, torch.zeros(1, 3), torch.full((1, 3), 1e30)])
    assert torch.equal(norm2(OURS, extreme)[:64], norm2(OURS, x))
    assert torch.equal(norm2(OURS, x[5:6]), norm2(OURS, x)[5:6])


class Passes(TorchDispatchMode):
    """Counts the operations that read or write as many numbers as an unknown has."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        sizes = [a.numel() for a in (*args, output) if isinstance(a, Tensor)]
        views = func.is_view or "detach" in func.__name__
        self.count += not views and max(sizes, default=0) >= self.size
        return output


def passes(solver: Any, steps: int) -> int:
    z0, weights = torch.zeros(64, 128), torch.linspace(0.1, 0.5, 128)
    with Passes(z0.numel()) as found:
        options = {"solver": solver(max_steps=steps), "batch_ndim": 1, "on_failure": "ignore"}
        rootdiff_torch.fixed_point(lambda z: weights * z + 1, z0, **options)
    return found.count


# Anderson, of any depth: the newest changes put among the older ones, a product with each of the two stacks, and a few
@pytest.mark.parametrize(("solver", "most"), [(rootdiff_torch.FixedPoint, 5), (rootdiff_torch.Anderson, 16)])
def test_a_step_far_from_the_root_makes_few_passes_beside_the_cell(
    solver: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loop, "judged", lambda solver, residual, y0, first, raw, asked: raw)  # the steps alone
    cell = 3  # weights * z, + 1, and - z
    assert passes(solver, 6) - passes(solver, 5) <= most + cell


def test_joining_and_extremes_are_those_of_the_standard() -> None:
    x, one = torch.randn(5, 3), torch.randn(5, 1)
    for axis in (0, 1, -1):
        assert torch.equal(OURS.max(x, axis=axis), xp.max(x, axis=axis))
        assert torch.equal(OURS.min(one, axis=axis), xp.min(one, axis=axis))
        assert torch.equal(OURS.stack([x], axis=axis), xp.stack([x], axis=axis))
        assert torch.equal(OURS.concat([x], axis=axis), x)
    assert torch.equal(OURS.concat([x, x[:, :0], one], axis=-1), xp.concat([x, one], axis=-1))
    assert OURS.concat([x[:, :0], x[:, :0]], axis=-1).shape == (5, 0)
    assert OURS.max(x) == xp.max(x)


@pytest.mark.parametrize("shapes", [((5, 3), (5, 3)), ((4, 3), (1, 3)), ((5, 4, 3), (5, 1, 3)), ((3,), (3,))])
def test_inner_products_are_those_of_the_standard(shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    torch.testing.assert_close(OURS.vecdot(a, b), xp.vecdot(a, b))
