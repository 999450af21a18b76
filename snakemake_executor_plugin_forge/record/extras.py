"""Libraries that only some commands need: imported when they do, with an answer where they are not installed."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import UsageError


def require(module: str, extra: str) -> Any:
    """Import a module that comes with an extra of the package.

    Raises:
        UsageError: with the command that installs it.

    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".", maxsplit=1)[0] != error.name.split(".")[0]:
            raise
        raise UsageError(
            f"This needs {error.name}, which is not installed: "
            f"python -m pip install 'snakemake-executor-plugin-forge[{extra}]'"
        ) from None
