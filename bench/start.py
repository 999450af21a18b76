"""Start ``snakemake --version`` once, with a plugin visible or hidden, and time the plugin's part in it.

Run as a program of its own by the start-up case: ``python -P start.py PLUGIN show|hide``. The result is one
line of JSON on standard error; Snakemake's own output stays as it is. Only the standard library is imported
before Snakemake, so that neither arm finds modules loaded that a real start would have to load.
"""

import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Adds up the wall and CPU time of the calls it is wrapped around, in milliseconds."""

    def __init__(self) -> None:
        """Start at zero."""
        self.calls = 0
        self.wall_ms = 0.0
        self.cpu_ms = 0.0

    def around(self, call: Callable[..., Any], applies: Callable[[Any], bool]) -> Callable[..., Any]:
        """Wrap a function; only calls whose first argument ``applies`` are timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not applies(args[0]):
                return call(*args, **kwargs)
            self.calls += 1
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.wall_ms += 1000 * (time.perf_counter() - wall)
                self.cpu_ms += 1000 * (time.process_time() - cpu)

        return timed


def hide(plugin: str) -> None:
    """Keep the plugin out of what Snakemake finds on the module path."""
    found = pkgutil.iter_modules

    def others(*args: Any, **kwargs: Any) -> Any:
        return (module for module in found(*args, **kwargs) if module.name != plugin)

    pkgutil.iter_modules = others


def main(plugin: str, mode: str) -> None:
    """Start Snakemake and report what the plugin's import and its options took."""
    clock = Clock()
    if mode == "hide":
        hide(plugin)
    # Snakemake looks for plugins as soon as its own modules are imported: this must be in place before.
    importlib.import_module = clock.around(importlib.import_module, lambda name: name == plugin)
    cli = importlib.import_module("snakemake.cli")
    registered = importlib.import_module("snakemake_interface_common.plugin_registry.plugin").PluginBase
    short = plugin.removeprefix("snakemake_executor_plugin_").replace("_", "-")

    def is_options(it: Any) -> bool:  # Forge's scheduler and logger have the same name
        return it.name == short and "executor" in type(it).__module__

    registered.register_cli_args = clock.around(registered.register_cli_args, is_options)
    try:
        cli.main(["--version"])
    finally:
        print(json.dumps(vars(clock)), file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
