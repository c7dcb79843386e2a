import os

import pytest

# Set before JAX starts: programs that run once are not worth optimising; compiling takes half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")


@pytest.fixture(autouse=True)
def _double_precision():
    """Run each test in float64; those of float32 leave it by `jax.enable_x64`."""
    import jax

    with jax.enable_x64(True):
        yield
