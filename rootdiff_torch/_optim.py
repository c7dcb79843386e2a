"""PyTorch's own minimiser, L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rootdiff._registry import MINIMIZERS
from rootdiff._residual import Residual
from rootdiff._space import max_norm
from rootdiff.solvers._wrapped import WrappedMinimizer


@dataclass(frozen=True, kw_only=True)
class TorchLBFGS(WrappedMinimizer):
    """`torch.optim.LBFGS` with strong Wolfe line search, for `minimize`; its name is "torch:LBFGS".

    It goes on until the gradient has fallen to the square root of `rtol`; Newton corrections follow, and whether a
    point is a minimum is judged by rootdiff. A batch is minimised as one large system.

    Parameters
    ----------
    rtol, atol : float, optional
        Tolerances on `y`, with the meaning and defaults of `IterativeSolver`.
    max_steps : int
        Iterations after which it gives up.
    memory : int
        Pairs of steps and gradients that it remembers.

    References
    ----------
    Liu & Nocedal (1989), "On the limited memory BFGS method for large scale optimization".

    Examples
    --------
    >>> import torch, rootdiff_torch as rd
    >>> rd.minimize(lambda y, a: ((y - a) ** 2).sum(), torch.zeros(2), 3.0, solver="torch:LBFGS").y
    tensor([3., 3.])
    """

    memory: int = 10

    title = "LBFGS of PyTorch"

    def descend(self, minimised: Residual, residual: Residual, y0: Tensor) -> tuple[Tensor, int]:
        y = y0.detach().clone().requires_grad_()
        slope = float(max_norm(residual.xp, residual(y0)).max())
        if not torch.isfinite(minimised(y0)).all():
            return y0, 0
        optimizer = torch.optim.LBFGS(
            [y],
            max_iter=self.max_steps,
            max_eval=10 * self.max_steps,
            tolerance_grad=slope * float(self.rtol or 0) ** 0.5,
            tolerance_change=0,
            history_size=self.memory,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Any:
            point = y.detach().clone()
            y.grad = residual(point)
            return minimised(point).sum()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return y.detach(), int(optimizer.state[y].get("n_iter", 0))


MINIMIZERS.register("torch:LBFGS", TorchLBFGS, ["torch"])
