import pytest


@pytest.fixture(autouse=True)
def _double_precision():
    """Run each test in float64; those of float32 leave it by `jax.enable_x64`."""
    import jax

    with jax.enable_x64(True):
        yield
