"""What compiles to a slow program as JAX stands: loops, LAPACK, batches of small systems. The one door to it."""

from rootdiff_jax.xla._blocks import in_blocks as in_blocks
from rootdiff_jax.xla._blocks import is_cut as is_cut
from rootdiff_jax.xla._elimination import eliminate as eliminate
from rootdiff_jax.xla._elimination import eliminate_again as eliminate_again
from rootdiff_jax.xla._lu import HARDLY_EVER as HARDLY_EVER
from rootdiff_jax.xla._lu import lu_factor as lu_factor
from rootdiff_jax.xla._lu import lu_solve as lu_solve
from rootdiff_jax.xla._packing import on_mesh as on_mesh
from rootdiff_jax.xla._packing import while_loop as while_loop
