"""Compiled programs are kept on disk from run to run, from Python as from the command line: that saves seconds.

JAX keeps them, by the program, the versions, the options and the processor they were compiled for, in
`$XDG_CACHE_HOME/jaxguard/xla` (by default below `~/.cache`). Where JAX is configured to keep them elsewhere, or not at
all (`JAX_ENABLE_COMPILATION_CACHE=false`), that is left as it is.
"""

from __future__ import annotations

import functools
import os
import pathlib
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_LEAST_SECONDS = 0.2  # what takes less time to compile is not kept
_config: Any = jax.config  # its type does not name the settings
_OF_JAX = 1.0  # its default for that


@functools.cache
def keep() -> None:
    """Begin to keep them in this process, unless JAX is configured; called before a program is compiled."""
    if _config.jax_compilation_cache_dir is not None or not _config.jax_enable_compilation_cache:
        return
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    _config.update("jax_compilation_cache_dir", str(root / "jaxguard" / "xla"))
    if _config.jax_persistent_cache_min_compile_time_secs == _OF_JAX:
        _config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    # JAX asks once in a process whether it keeps programs, and may have compiled some already.
    compilation_cache.reset_cache()
