"""The pytest plugin under its old name: ``-p rootdiff.testing.plugin`` loads `rootdiff_pytest`."""

pytest_plugins = ("rootdiff_pytest",)
