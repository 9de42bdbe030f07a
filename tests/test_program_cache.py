import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxguard import program_cache

DIRECTORY, LEAST = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """Sets JAX's options; afterwards they are what they were."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = (DIRECTORY, LEAST, "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}

    def configure(**options):
        for name, value in options.items():
            jax.config.update(name, value)
        program_cache.keep.__wrapped__()
        return jax.config.jax_compilation_cache_dir, getattr(jax.config, LEAST)

    yield configure
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_kept_on_disk_where_jax_is_not_configured(configured, tmp_path):
    jax.jit(lambda x: x + 1)(1.0)  # JAX has compiled before
    place = tmp_path / "jaxguard" / "xla"
    assert configured(**{DIRECTORY: None, LEAST: 1.0}) == (str(place), 0.2)
    jax.config.update(LEAST, 0.0)
    jax.jit(lambda x: x * 17)(2.0)
    assert list(place.glob("jit_*"))


def test_what_the_user_has_configured_stays(configured, tmp_path):
    own = str(tmp_path / "own")
    assert configured(**{DIRECTORY: own, LEAST: 1.0}) == (own, 1.0)
    assert configured(**{DIRECTORY: None, LEAST: 1.0, "jax_enable_compilation_cache": False}) == (None, 1.0)
    assert configured(**{DIRECTORY: None, LEAST: 7.0, "jax_enable_compilation_cache": True})[1] == 7.0
