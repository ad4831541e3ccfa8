"""Where downloads and compiled programs are kept between processes."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """`$INSTRUCTJAX_CACHE`, else `instructjax` in the user's cache folder."""
    if folder := os.environ.get("INSTRUCTJAX_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "instructjax"


def enable_compilation_cache() -> None:
    """Let XLA keep compiled programs on disk, unless the caller has chosen a place already."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
