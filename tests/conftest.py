"""Eight CPU devices for every test, and a compilation cache that the runs of a test share."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Subprocesses inherit it through the environment; nothing is left in the user's own cache."""
    folder = tmp_path_factory.mktemp("xla")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
