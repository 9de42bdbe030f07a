"""Fixtures of the fleet's tests."""

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """Each program is compiled once for all tests: every stream makes its own."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("compiled")))
    jax.config.update(names[1], 0.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
