"""The tiny model in the zoo, and a compiler that hurries."""

import os

import pytest
import tiny

# Read when XLA starts, here and in every process the tests start: compiling takes a quarter of the
# time. Runs that are compared with each other are compiled alike.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(autouse=True)
def zoo(monkeypatch):
    tiny.add(monkeypatch.setitem)
