"""Transformations of Optax as minimisers, imported when one is used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from rootdiff._backend import Array
from rootdiff._errors import ArgumentTypeError
from rootdiff._registry import MINIMIZERS
from rootdiff._residual import Residual
from rootdiff._space import max_norm
from rootdiff.solvers._wrapped import WrappedMinimizer, imported

Method = Literal["lbfgs", "adam"]


@dataclass(frozen=True, kw_only=True)
class Optax(WrappedMinimizer):
    """A gradient transformation of Optax (extra ``optax``) for `minimize`; its names are "optax:lbfgs", "optax:adam".

    It goes on until the gradient has fallen to the square root of `rtol`, or no step moves y; Newton corrections
    follow, and whether a point is a minimum is judged by rootdiff. A batch is minimised as one large system; for many
    systems use ``jax.vmap``.

    Parameters
    ----------
    method : {"lbfgs", "adam"}
        L-BFGS with its line search, or Adam with a learning rate of 0.1.
    transformation : optax.GradientTransformation, optional
        Another one, in place of `method`. Programs are kept for the object: make it once.
    rtol, atol : float, optional
        Tolerances on `y`, with the meaning and defaults of `IterativeSolver`.
    max_steps : int
        Updates after which it gives up.

    References
    ----------
    DeepMind (2020), "The DeepMind JAX ecosystem": Optax.

    Examples
    --------
    >>> import jax.numpy as jnp, rootdiff_jax as rd
    >>> rd.minimize(lambda y, a: jnp.sum((y - a) ** 2), jnp.zeros(2), 3.0, solver="optax:lbfgs").y.round(4).tolist()
    [3.0, 3.0]
    """

    method: Method = "lbfgs"
    transformation: Any = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transformation is not None and not hasattr(self.transformation, "update"):
            raise ArgumentTypeError(
                f"transformation: got {self.transformation!r}; give one of Optax, made by a call: optax.adam(1e-3)."
            )

    @property
    def title(self) -> str:
        return f"{self.method if self.transformation is None else 'a transformation'} of Optax"

    def descend(self, minimised: Residual, residual: Residual, y0: Array) -> tuple[Array, Array]:
        optax = imported("optax", "Optax")
        own = {"lbfgs": optax.lbfgs, "adam": partial(optax.adam, 0.1)}
        transformation = own[self.method]() if self.transformation is None else self.transformation
        transformation = optax.with_extra_args_support(transformation)

        def whole(y: Array) -> Array:
            return jnp.sum(minimised(y))

        enough = jnp.max(max_norm(jnp, residual(y0))) * jnp.sqrt(jnp.asarray(self.rtol, y0.dtype))

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            y, state, steps, _ = carry
            value, slope = jax.value_and_grad(whole)(y)
            change, state = transformation.update(slope, state, y, value=value, grad=slope, value_fn=whole)
            new = jnp.astype(y + change, y.dtype)
            going = (jnp.max(jnp.abs(slope)) > enough) & jnp.any(new != y)
            return jnp.where(going, new, y), state, steps + 1, going

        def unfinished(carry: tuple[Any, ...]) -> Array:
            return carry[3] & (carry[2] < self.max_steps)

        start = y0, transformation.init(y0), jnp.asarray(0, jnp.int32), jnp.asarray(True)
        y, _, steps, _ = jax.lax.while_loop(unfinished, step, start)
        return y, steps


for _method in get_args(Method):
    MINIMIZERS.register(f"optax:{_method}", partial(Optax, method=_method), ["jax"])
