"""What the docstrings of the entry points say of JAX."""

from __future__ import annotations

WORDS = {
    "imports": "jax, jax.numpy as jnp, rootdiff_jax as rd",
    "xp": "jnp",
    "ox_squares": ', "optimistix:LevenbergMarquardt" and "optimistix:Dogleg"',
    "ox_minimize": ', "optimistix:BFGS", "optax:lbfgs" and "optax:adam"',
    "asarray": "jnp.array",
    "array": "array",
    "residual": """
        It is traced, as under ``jax.jit``. One with a `custom_vjp` in it is differentiable in reverse mode only.
    """,
    "args": """
        Parameters. Floating arrays and floats are differentiated; integer and boolean arrays are traced; everything
        else (None, int, bool, str, a dataclass that is no pytree to JAX) is passed on as it is.
    """,
    "large_squares": ", above 1024 unknowns by products with J",
    "in_axes": "``in_axes`` of `jax.vmap`",
    "batched_args": """
        The smaller batches are of a few fixed sizes, and on a CPU a large batch of small systems is solved in blocks
        that stay in its cache; the residual is traced for one system.
    """,
    "on_failure": """
        A traced program, under ``jax.jit`` for instance, can neither raise nor warn: there "raise" and "warn" mean
        "nan". So they do for the linear solve of a derivative, everywhere.
    """,
    "correct": "It is traced; what it closes over is not differentiated.",
    "callback": """
        This, `verbose` and `history` run the steps one by one, not compiled, and only outside of a trace.
    """,
    "check": ", and only outside of a trace",
    "solution": "With `y`, `status`, `steps`, `residual_norm` and `method`; of these `y` alone has a derivative.",
    "steps": """
        `y` is differentiable in `y0`, `t`, `args` and in what `f` closes over. The steps are one ``jax.lax.scan``,
        which is compiled in each eager call: put it under ``jax.jit``. More than one derivative takes forward mode
        first, ``jacrev(jacfwd(...))``.
    """,
    "untraced": ", outside of a trace",
    "notes": """
        A program is compiled once for all residuals with the same jaxpr, all values of their constants and all
        tolerances and step limits.

        On a GPU or TPU JAX rounds the factors of float32 matrix products to ten or eight bits; inside a solve and its
        derivatives they are computed in full, unless ``jax_default_matmul_precision`` says otherwise: then ask for no
        more than it gives, ``rtol=1e-3`` for ``"tensorfloat32"``.

        An eager call traces the residual once, so that it sees what has changed in the objects it reads; wrap it in
        ``jax.jit`` to save that, or the whole call. In reverse mode, a parameter that several systems share gets NaN if
        one of them failed, unless the loss masks that one out by `converged`. Under ``jax_debug_nans`` JAX stops at
        the NaN of ``on_failure="nan"``, without a reason; "raise" raises a ConvergenceError, out of ``jax.jit`` too.
        A ``scan`` around a root that is differentiated more than once needs forward
        mode first, ``jacrev(jacfwd(...))``: JAX forgets derivative rules in the reverse mode of a scan.
    """,
    "implicit_example": """
        >>> @rd.implicit.wrap(lambda y, a: y**2 - a)
        ... def heron(y, a):
        ...     return jax.lax.fori_loop(0, 10, lambda _, y: (y + a / y) / 2, y)
        >>> jax.jit(jax.jacrev(lambda a: heron(jnp.ones(1), a).y))(jnp.array([4.0])).round(4).tolist()
        [[0.25]]
    """,
    "vmap": "; `jax.vmap` works",
    "path": "The steps then run one by one, not compiled, and only outside of a trace.",
    "concrete": ", or under a transform, where values are not known",
    "root_example": """
        >>> gradient = jax.jacobian(lambda a: rd.root(lambda y, a: y**2 - a, jnp.array([1.0]), a).y)(jnp.array([4.0]))
        >>> gradient.round(4).tolist()
        [[0.25]]
    """,
}
