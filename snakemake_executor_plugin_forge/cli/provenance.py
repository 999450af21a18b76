"""``snakemake-forge provenance``: a run as a Workflow Run RO-Crate."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from ..analysis.crates import check_store
from ..spec.errors import UsageError
from ..spec.paths import CATALOG_FILE
from .select import add_catalog, add_command, add_run, open_records, pick_run

_EXAMPLES = """examples:
  snakemake-forge provenance                                the newest run, into the store that forge.yaml names
  snakemake-forge provenance /srv/provenance/run-17         into this directory; the crate names files by their paths
  snakemake-forge provenance crate --copy --license MIT     with inputs and outputs in it, ready for publication

the crate says which command made which files of which, with checksums, when, for whom, with which versions
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "provenance", _EXAMPLES)
    parser.add_argument(
        "output",
        nargs="?",
        metavar="CRATE",
        help="the new directory (default: named like the run, below provenance: of the catalog)",
    )
    add_catalog(parser)
    parser.add_argument("--copy", action="store_true", help="put inputs and outputs into the crate")
    parser.add_argument("--license", metavar="SPDX", help="licence of the crate's content, such as CC-BY-4.0")
    add_run(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the crate."""
    from ..analysis.provenance import write_crate  # rocrate

    with open_records(options.directory) as index:
        name = pick_run(index, options.name)
        output = options.output or f"{_store(options)}/{name}"
        done = write_crate(index, name, output, copy=options.copy, license_=options.license)
    print(f"{os.path.abspath(done.directory)}: run {name}, {done.jobs} jobs, {done.files} files.")
    if done.missing:
        print(f"{done.missing} of the files no longer exist.", file=sys.stderr)
    if done.changed:
        print(f"{done.changed} of the files have changed after the job that made them.", file=sys.stderr)
    return 0


def _store(options: argparse.Namespace) -> str:
    """Return the provenance store of the catalog.

    Raises:
        UsageError: if the catalog names none, or Forge cannot write to it.
    """
    from ..software import catalog_file  # pydantic: only where it is needed

    path = catalog_file.find(options.config, options.directory, "--config")
    store = None if path is None else catalog_file.load(path).provenance
    if store is None:
        where = path or f"a {CATALOG_FILE}, which is not in {os.path.abspath(options.directory)}"
        raise UsageError(f"Name the new directory, or set provenance: in {where}.")
    check_store(store, f"{path}: provenance:")
    return store
