"""What compiles to a slow program as JAX stands: loops, LAPACK, batches of small systems. The one door to it."""

from rootdiff_jax.xla._blocks import in_blocks, is_cut
from rootdiff_jax.xla._elimination import solve as eliminate
from rootdiff_jax.xla._elimination import solve_again as eliminate_again
from rootdiff_jax.xla._lu import HARDLY_EVER
from rootdiff_jax.xla._lu import factor as lu_factor
from rootdiff_jax.xla._lu import solve as lu_solve
from rootdiff_jax.xla._packing import on_mesh, while_loop

__all__ = [
    "HARDLY_EVER",
    "eliminate",
    "eliminate_again",
    "in_blocks",
    "is_cut",
    "lu_factor",
    "lu_solve",
    "on_mesh",
    "while_loop",
]
