"""Parts that the verbs of ``snakemake-forge runtimes`` share: opening the catalog, choosing and building runtimes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ..software.registry import Runtimes
from ..software.store import Report, Store, default_directory
from ..spec.catalog import Catalog, Runtime
from ..spec.errors import UsageError, near_miss
from ..spec.paths import CATALOG_FILE
from .show import plain


def build(runtimes: Runtimes, wanted: Iterable[Runtime], *, again: bool = False) -> None:
    """Build runtimes, with progress on a terminal, and with a line for each step elsewhere.

    Raises:
        ForgeError: see :meth:`..software.registry.Runtimes.build`.
    """
    with progress() as report:
        runtimes.build(wanted, report, again=again)


@contextmanager
def progress() -> Iterator[Callable[[Runtime], Report]]:
    """Make a function that shows the progress of each runtime."""
    from rich.console import Console  # only here: the other commands are faster without it
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=plain(sys.stderr))
    if not console.is_terminal:
        yield lambda runtime: lambda text: print(f"{runtime.name}: {text}", file=sys.stderr, flush=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.fields[name]}", style="bold"), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bars:

        def report(runtime: Runtime) -> Report:
            task = bars.add_task("waiting", name=runtime.name, total=None)
            return lambda text: bars.update(task, description=text)

        yield report


def open_runtimes(options: argparse.Namespace) -> Runtimes:
    """Open the catalog that the options name.

    Raises:
        UsageError: if there is no catalog, and for every mistake in it.
    """
    from ..software import catalog_file  # pydantic: only where it is needed

    path = catalog_file.find(options.config, options.directory, "--config")
    if path is None:
        raise UsageError(f"There is no {CATALOG_FILE} in {os.path.abspath(options.directory)}. Name one with --config.")
    store = Store(options.runtimes_dir or default_directory(os.environ))
    return Runtimes(catalog_file.load(path), store, os.environ)


def chosen(catalog: Catalog, names: list[str]) -> list[Runtime]:
    """Return the runtimes with these names, or all.

    Raises:
        UsageError: for a name that the catalog does not have; names the nearest.
    """
    for name in names:
        if name not in catalog.runtimes:
            raise UsageError(f"{name!r} is no runtime of {catalog.path}.{near_miss(name, catalog.runtimes)}")
    return [runtime for runtime in catalog.runtimes.values() if not names or runtime.name in names]
