"""``snakemake-forge runtimes``: list, build and check the runtimes of the catalog."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .select import add_catalog, add_command, add_directory, local_path
from .show import print_json, print_table

if TYPE_CHECKING:
    from ..software.registry import RuntimeState

_EXAMPLES = """examples:
  snakemake-forge runtimes list                 all runtimes, and which of them are built
  snakemake-forge runtimes build                build missing runtimes, several at a time
  snakemake-forge runtimes check                read every file and library, and run a real job in each runtime
  snakemake-forge runtimes check py --repair    build it again if it is damaged
  snakemake-forge runtimes schema               print the JSON schema of forge.yaml, for editors
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command with its verbs."""
    parser = add_command(commands, "runtimes", _EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_verb(verbs, "list", "list the runtimes, and which of them are built", run_list)
    _add_verb(verbs, "build", "build missing runtimes", run_build)
    check = _add_verb(verbs, "check", "read every file, and run a job in each runtime", run_check)
    check.add_argument("--repair", action="store_true", help="build damaged or missing runtimes")
    schema = verbs.add_parser("schema", help="print the JSON schema of forge.yaml")
    schema.set_defaults(run=run_schema)


def _add_verb(verbs: Any, verb: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(verb, help=text)
    parser.add_argument("names", nargs="*", metavar="RUNTIME", help="only these runtimes (default: all)")
    add_catalog(parser)
    add_directory(parser, argparse.SUPPRESS)  # as every command takes it: behind its name
    parser.add_argument(
        "--runtimes-dir",
        type=local_path,
        metavar="DIR",
        help="where Forge keeps environments (default: in the user's cache)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def run_check(options: argparse.Namespace) -> int:
    """Check the runtimes with cli/check.py, which runs jobs and therefore imports all of Forge."""
    from . import check

    return check.run_check(options)


def run_schema(options: argparse.Namespace) -> int:
    """Print the JSON schema."""
    from ..software.catalog_file import schema  # pydantic: only where it is needed

    del options
    print(schema())
    return 0


def run_list(options: argparse.Namespace) -> int:
    """Print the runtimes; return 1 if one is not built."""
    from .environments import chosen, open_runtimes  # not above: --help needs none of it

    runtimes = open_runtimes(options)
    states = [runtimes.state(r) for r in chosen(runtimes.catalog, options.names)]
    show(states, options)
    return 0 if all(s.word != "missing" for s in states) else 1


def run_build(options: argparse.Namespace) -> int:
    """Build missing runtimes, then print all."""
    from .environments import build, chosen, open_runtimes  # as above

    runtimes = open_runtimes(options)
    wanted = chosen(runtimes.catalog, options.names)
    build(runtimes, wanted)
    show([runtimes.state(r) for r in wanted], options)
    return 0


def show(states: list[RuntimeState], options: argparse.Namespace) -> None:
    """Print runtimes as a table or as JSON."""
    if options.json:
        print_json([as_json(state) for state in states])
        return
    print_table(("RUNTIME", "KIND", "STATE", "PACKAGES", "SOURCE", "PREFIX"), [_row(state) for state in states])


def _row(state: RuntimeState) -> tuple[str, ...]:
    manifest = state.manifest
    return (
        state.runtime.name,
        str(state.runtime.kind),
        state.word,
        str(len(manifest.packages)) if manifest else "-",
        state.runtime.source or "-",
        manifest.prefix if manifest else "-",
    )


def as_json(state: RuntimeState) -> dict[str, object]:
    """The object of one runtime; fields: docs/reference/cli.md."""
    runtime, manifest = state.runtime, state.manifest
    return {
        "runtime": runtime.name,
        "kind": str(runtime.kind),
        "state": state.word,
        "source": runtime.source or None,
        "identity": manifest.identity if manifest else state.definition.identity if state.definition else None,
        "prefix": manifest.prefix if manifest else None,
        "created": manifest.created if manifest else None,
        "packages": dict(manifest.packages) if manifest else {},
    }
