"""What the verbs of ``snakemake-forge runtimes`` share: the catalog's runtimes, those that are meant, building them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ..catalog import FILE_NAME, Catalog, Runtime
from ..errors import UsageError
from ..hints import near_miss
from ..runtimes.registry import Runtimes
from ..runtimes.store import Report, Store, default_directory


def build(runtimes: Runtimes, wanted: Iterable[Runtime], *, again: bool = False) -> None:
    """Build with progress on the terminal, or with a line for each step elsewhere.

    Raises:
        ForgeError: see :meth:`.runtimes.registry.Runtimes.build`.

    """
    with progress() as report:
        runtimes.build(wanted, report, again=again)


@contextmanager
def progress() -> Iterator[Callable[[Runtime], Report]]:
    """What makes the report of each runtime."""
    from rich.console import Console  # only here: the other commands are faster without it
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
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
    """Those of the catalog that the options mean.

    Raises:
        UsageError: if there is no catalog, or something is wrong in it.

    """
    from .. import catalog_file  # pydantic: only where it is needed

    path = catalog_file.find(options.config, options.directory)
    if path is None:
        raise UsageError(f"There is no {FILE_NAME} in {os.path.abspath(options.directory)}. Name one with --config.")
    store = Store(options.runtimes_dir or default_directory(os.environ))
    return Runtimes(catalog_file.load(path), store, os.environ)


def chosen(catalog: Catalog, names: list[str]) -> list[Runtime]:
    """Those runtimes, or all.

    Raises:
        UsageError: for a name that the catalog does not have.

    """
    for name in names:
        if name not in catalog.runtimes:
            raise UsageError(f"{name!r} is no runtime of {catalog.path}.{near_miss(name, catalog.runtimes)}")
    return [runtime for runtime in catalog.runtimes.values() if not names or runtime.name in names]
