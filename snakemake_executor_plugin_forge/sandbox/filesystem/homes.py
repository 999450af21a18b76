"""The directories whose changes a workflow keeps for itself: $HOME and directories for caches. See :mod:`.kept`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ...spec.file_policy import PRIVATE_DIRECTORIES, below

# Where programs keep caches and settings, if these variables name a place: XDG Base Directory Specification, and the
# manual of each program.
VARIABLES = (
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR",
    "PIP_CACHE_DIR", "UV_CACHE_DIR", "R_LIBS_USER", "R_USER_CACHE_DIR", "RENV_PATHS_ROOT", "CONDA_PKGS_DIRS",
    "MAMBA_ROOT_PREFIX", "NXF_HOME", "GRADLE_USER_HOME", "HF_HOME", "TORCH_HOME", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH",
    "KERAS_HOME", "NLTK_DATA", "JULIA_DEPOT_PATH", "CARGO_HOME", "GOPATH", "GOCACHE", "npm_config_cache",
    "PYTHONPYCACHEPREFIX", "DENO_DIR", "CCACHE_DIR", "BIOCFILECACHE_CACHE", "EXPERIMENT_HUB_CACHE",
)  # fmt: skip


def home_directory() -> str | None:
    """The user's home directory without symbolic links; None if it is missing on this host."""
    home = os.path.realpath(os.path.expanduser("~"))
    return home if os.path.isdir(home) else None


def kept_directories(workdir: str) -> tuple[str, ...]:
    """The directories whose changes the workflow keeps for itself: $HOME, and what variables name outside of it."""
    home = home_directory()
    own = () if home is None or home in ("/", *PRIVATE_DIRECTORIES) or below(home, workdir) else (home,)
    return (*own, *cache_directories(os.environ, (workdir, *own)))


def cache_directories(environment: Mapping[str, str], around: Sequence[str]) -> tuple[str, ...]:
    """The directories that variables name for caches and settings, outside ``around``. Makes those that are missing."""
    found: list[str] = []
    for name in VARIABLES:
        value = environment.get(name, "")
        path = os.path.realpath(value) if value.startswith("/") and not set(value) & set(":,%~$") else "/"
        if path in ("/", *PRIVATE_DIRECTORIES) or any(below(path, d) for d in (*around, *found)):
            continue
        if any(below(d, path) for d in around):
            continue
        with suppress(OSError):
            os.makedirs(path, exist_ok=True)
        if os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):
            found = [*(d for d in found if not below(d, path)), path]
    return tuple(found)
