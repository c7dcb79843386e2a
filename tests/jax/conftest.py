import pytest

from rootdiff.testing._drivers import enable_x64


@pytest.fixture(autouse=True)
def _double_precision():
    """Run each test in float64; those of float32 leave it by `enable_x64`."""
    with enable_x64(True):
        yield
