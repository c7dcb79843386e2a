"""The solver chosen by size."""

from __future__ import annotations

from dataclasses import dataclass

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._settings import runtime, with_settings
from rootdiff._sizes import fits, has_few_unknowns, is_dense, is_one_large
from rootdiff._solution import RawSolution
from rootdiff._solver import Solver
from rootdiff.linear._gmres import GMRES
from rootdiff.solvers._anderson import Anderson
from rootdiff.solvers._broyden import Broyden
from rootdiff.solvers._chain import Chain
from rootdiff.solvers._chord import Chord
from rootdiff.solvers._df_sane import DFSane
from rootdiff.solvers._levenberg_marquardt import LevenbergMarquardt
from rootdiff.solvers._newton import Newton
from rootdiff.solvers._newton_krylov import NewtonKrylov
from rootdiff.solvers._pseudo_transient import PseudoTransient
from rootdiff.solvers._trust_region import TrustRegion

#: Steps and Krylov vectors after which a matrix-free solve is no longer the cheaper one.
_FEW_PRODUCTS = NewtonKrylov(max_steps=20, linear=GMRES(restart=30, max_restarts=1))
_FEW_JACOBIANS = Chord()
#: Newton's line search remembers so many norms of f that it can follow a curved valley.
_DENSE = Newton(memory=8), TrustRegion(radius=1.0), LevenbergMarquardt(scale="none"), PseudoTransient()
_SCALAR = Newton(), PseudoTransient()
_FREE = NewtonKrylov(), DFSane()
#: A compiled program reserves memory for the Krylov vectors though this hardly ever runs.
_FREE_AFTER_ANDERSON = NewtonKrylov(linear=GMRES(restart=20, max_restarts=15)), DFSane()
_BY_VALUES = DFSane(), Broyden(initial="identity")
_ANDERSON = Anderson()


@dataclass(frozen=True, kw_only=True)
class Auto(Solver):
    """A `Chain` chosen by size, and by whether the residual is that of a fixed point.

    Up to 1024 unknowns and 2^24 Jacobian entries in the batch: `Newton`, then `TrustRegion`, `LevenbergMarquardt` and
    `PseudoTransient`, each for the systems in which those before it failed; one system of more than 64 unknowns is
    tried before by a `NewtonKrylov` that takes few products, or, where products come from differences, by `Chord`,
    which forms few Jacobians; not where the user gives the Jacobian or its pattern. Above: `NewtonKrylov`, then
    `DFSane`, both after `Newton` where the pattern is known; so too, at any size, for one system spread over devices.
    Equations of one unknown, in which there is no direction to choose: `Newton`, then `PseudoTransient`. A residual
    without a derivative, such as one that calls out of a JAX program: `DFSane`, then `Broyden` from the identity.

    Parameters
    ----------
    fixed_point : bool
        Whether the residual is that of a fixed point: then above 64 unknowns, and where it has no derivative,
        `Anderson` goes first.
    rtol, atol, max_steps : optional
        As for `IterativeSolver`, of each method. Default: what each has.
    """

    fixed_point: bool = False
    rtol: float | None = runtime(None)
    atol: float | None = runtime(None)
    max_steps: int | None = runtime(None)

    def choose(self, shape: tuple[int, ...], sparing: Solver | None = None, sparse: bool = False) -> Chain:
        """Return the solver for unknowns of this shape, (*batch, n).

        `sparing` goes first where there is one system so large that Jacobians cost more than all else; a `sparse` one
        whose pattern is known costs a few products.
        """
        dense: tuple[Solver, ...] = _SCALAR if shape[-1] == 1 else _DENSE
        if sparing is not None and is_one_large(shape):
            dense = (sparing, *dense)
        free: tuple[Solver, ...] = _FREE_AFTER_ANDERSON if self.fixed_point else _FREE
        robust = dense if is_dense(shape) else (*dense[:1], *free) if sparse else free
        first = self.fixed_point and not sparse and not (has_few_unknowns(shape) and fits(shape))
        return self._chain(first, robust)

    def _chain(self, anderson: bool, others: tuple[Solver, ...]) -> Chain:
        solvers = (_ANDERSON, *others) if anderson else others
        settings = {name: getattr(self, name) for name in ("rtol", "atol", "max_steps")}
        given = {name: value for name, value in settings.items() if value is not None}
        return Chain([with_settings(solver, **given) for solver in solvers] if given else solvers)

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        return self._chosen(residual, y0).solve(residual, y0)

    def solve_where(self, residual: Residual, y0: Array, active: Array) -> RawSolution:
        return self._chosen(residual, y0).solve_where(residual, y0, active)

    def _chosen(self, residual: Residual, y0: Array) -> Chain:
        if not residual.backend.differentiable:  # in PyTorch to know it takes an evaluation
            return self._chain(self.fixed_point, _BY_VALUES)
        if residual.backend.spread:
            return self._chain(self.fixed_point, _FREE)
        sparing: Solver | None = _FEW_PRODUCTS
        if residual.backend.precision(y0.dtype) > residual.xp.finfo(y0.dtype).eps:  # derivatives are differences
            sparing = None if residual.gives_jacobian else _FEW_JACOBIANS
        sparse = residual.pattern is not None
        return self.choose(tuple(y0.shape), None if sparse else sparing, sparse)
