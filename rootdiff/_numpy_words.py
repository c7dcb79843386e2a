"""What the docstrings of the entry points say of NumPy."""

from __future__ import annotations

WORDS = {
    "imports": "numpy as np, rootdiff as rd",
    "xp": "np",
    "asarray": "np.array",
    "array": "array",
    "differentiable": "and its derivatives with respect to `args`",
    "residual": "It must not change its inputs.",
    "args": """
        Parameters. Real floating arrays and floats, alone or in tuples, lists and dicts, are differentiated; everything
        else, a dataclass too, is passed on as it is, and its derivative is None. Arrays are copied, so that what is
        written into them later does not change a derivative.
    """,
    "large": "Chord",
    "sparse_squares": """
        jac_sparsity : None
            PyTorch and JAX take the pattern of the Jacobian.
    """,
    "in_axes": "``in_axes`` of `jax.vmap`",
    "on_failure": """
        In reverse mode NaN goes to those entries of a parameter that only failed systems depend on; one that others
        share gets the sum over the good systems. What a system depends on that has a root, but no derivative, is NaN.
        `converged`, and `GradientReport.status`, tell which failed.
    """,
    "derivatives": """
        jac : callable, optional
            ``jac(y, *args)`` returns df/dy, (*batch, *shape, *shape), where `y0` is one array; or, of one system, a
            sparse array of SciPy, (n, n), which is factored as such, or a `scipy.sparse.linalg.LinearOperator`, whose
            products serve where no matrix is formed; with its `rmatvec` for a vjp of many unknowns. Where derivatives,
            or a `gradient_report`, are asked for, or a solve fails, one product tells whether a rule is right.
        jvp : callable, optional
            ``jvp((y, *args), (y_dot, *args_dot))`` returns the derivative of the residual; the tangent of a leaf that
            is not differentiated is None.
        vjp : callable, optional
            ``vjp((y, *args), cotangent)`` returns a tuple of cotangents of y and of each of `args`.
        derivatives : {"finite-difference", "forward-difference", "complex-step"}
            How to get the derivatives that were not given: by central differences (relative error about eps^(2/3),
            where f is rounded to eps); by differences to one side, at half the calls of a dear residual, with steps of
            eps^(1/2) and errors like that; or by complex steps, exact to rounding, for a residual that is analytic and
            takes complex numbers.
        diff_step : float, optional
            The step of differences in each unknown and parameter, as a part of its size, at least half of that (a zero
            counts as its `y_scale`, or one), in (0, 1): 1e-3 for a residual with noise of 1e-9. It is taken as it is,
            to both sides that `bounds` leave, or to one. Default: steps that f itself tells.
    """,
    "jac_of_equations": """
        jac : callable, optional
            ``jac(y, *args)`` returns dr/dy, (*batch, ..., *shape), where `y0` is one real array: the axes of the
            residual before those of y. Checked as that of `root`.
    """,
    "jac_of_objective": """
        jac : callable, optional
            ``jac(y, *args)`` returns the gradient, like `y0`, where that is one real array. One product tells
            whether it is that at the end.
    """,
    "within": " where they come of `args`",
    "second": """
        The gradient holds differences, whose error in y is part of `error`, and its derivatives are differences of it:
        those of y are right to five to nine digits. `jac`, or ``derivatives="complex-step"``, which is taken within the
        gradient, makes that eight to ten.
    """,
    "options": ", derivatives, diff_step",
    "fixed_point_options": ", derivatives, diff_step, max_evaluations",
    "max_evaluations": """
        max_evaluations : int, optional
            Calls of the residual, those for differences included, after which no step is taken: systems that have not
            finished have the status MAX_EVALUATIONS. ``sol.evaluations`` tells how many there were, those of the last
            step and of the verdict on what has been claimed included. Of "auto", `Chain` and the native solvers but
            brackets. Default: for "auto" and one system the larger one of 12,000 and 200 (n + 1) for n unknowns; else
            none.
    """,
    "rules": ", jac, jvp, vjp, derivatives, diff_step",
    "y_scale": "The steps of differences are as long as it allows, too.",
    "bounds": ", and no difference leaves it",
    "solution": "With `y`, `status`, `steps`, `residual_norm`, and the methods `vjp`, `jvp` and `jacobian`.",
    "steps": """
        Of ``sol.vjp``, ``sol.jvp`` and ``sol.jacobian`` the arguments are ``(y0, t, *args)``. Each takes
        one sparse linear solve for all steps at once, of times * stages * n unknowns: their Jacobian has a band, and is
        made of differences, as those of `root`.
    """,
    "aux": ", and is the value alone",
    "implicit_example": """
        >>> from scipy.optimize import newton
        >>> @rd.implicit.wrap(lambda y, a: y**2 - a)
        ... def solve(y0, a):
        ...     return newton(lambda y: y**2 - a, y0)
        >>> sol = solve(np.array([1.0]), np.array([2.0]))
        >>> sol.y, sol.vjp(np.array([1.0]))
        (array([1.41421356]), (array([0.35355339]),))
    """,
    "root_example": """
        >>> sol = rd.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([2.0]))
        >>> sol.y, sol.vjp(np.array([1.0]))
        (array([1.41421356]), (array([0.35355339]),))
    """,
}
