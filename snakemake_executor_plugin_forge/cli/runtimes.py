"""``snakemake-forge runtimes``: the catalog; build what is missing; look whether it is sound and works."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..catalog import FILE_NAME
from .select import add_command
from .show import print_json, print_table

if TYPE_CHECKING:
    from ..runtimes.registry import State

_EXAMPLES = """examples:
  snakemake-forge runtimes list                 what the catalog has, and what of it is built
  snakemake-forge runtimes build                build what is missing, several at a time
  snakemake-forge runtimes check                every file, every library, and a real job in each
  snakemake-forge runtimes check py --repair    build it again if it is damaged
  snakemake-forge runtimes schema               the JSON schema of forge.yaml, for editors
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command with its verbs."""
    parser = add_command(commands, "runtimes", _EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text, run in (
        ("list", "what the catalog has, and what of it is built", run_list),
        ("build", "build what is missing", run_build),
    ):
        _add_verb(verbs, verb, text, run)
    check = _add_verb(verbs, "check", "look at every file, and run a job in each", run_check)
    check.add_argument("--repair", action="store_true", help="build again what is damaged")
    schema = verbs.add_parser("schema", help="the JSON schema of forge.yaml")
    schema.set_defaults(run=run_schema)


def _add_verb(verbs: Any, verb: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(verb, help=text)
    parser.add_argument("names", nargs="*", metavar="RUNTIME", help="only these (default: all)")
    parser.add_argument("--config", metavar="FILE", help=f"the catalog (default: {FILE_NAME} in the directory)")
    parser.add_argument("--runtimes-dir", metavar="DIR", help="where environments are (default: in the user's cache)")
    parser.add_argument("--json", action="store_true", help="a JSON list (docs/reference/cli.md has the fields)")
    parser.set_defaults(run=run)
    return parser


def run_check(options: argparse.Namespace) -> int:
    """See check.py, which needs all of Forge, as it runs jobs."""
    from . import check

    return check.run_check(options)


def run_schema(options: argparse.Namespace) -> int:
    """Print the JSON schema."""
    from ..catalog_file import schema  # pydantic: only where it is needed

    del options
    print(schema())
    return 0


def run_list(options: argparse.Namespace) -> int:
    """Print all runtimes; exit code 1 if some are not built."""
    from .environments import chosen, open_runtimes  # not above: --help needs none of it

    runtimes = open_runtimes(options)
    states = [runtimes.state(r) for r in chosen(runtimes.catalog, options.names)]
    show(states, options)
    return 0 if all(s.word != "missing" for s in states) else 1


def run_build(options: argparse.Namespace) -> int:
    """Build what is missing, then print them."""
    from .environments import build, chosen, open_runtimes  # as above

    runtimes = open_runtimes(options)
    wanted = chosen(runtimes.catalog, options.names)
    build(runtimes, wanted)
    show([runtimes.state(r) for r in wanted], options)
    return 0


def show(states: list[State], options: argparse.Namespace) -> None:
    """As a table or as JSON."""
    if options.json:
        print_json([as_json(state) for state in states])
        return
    print_table(("RUNTIME", "KIND", "STATE", "PACKAGES", "SOURCE", "PREFIX"), [_row(state) for state in states])


def _row(state: State) -> tuple[str, ...]:
    manifest = state.manifest
    return (
        state.runtime.name,
        str(state.runtime.kind),
        state.word,
        str(len(manifest.packages)) if manifest else "-",
        state.runtime.source or "-",
        manifest.prefix if manifest else "-",
    )


def as_json(state: State) -> dict[str, object]:
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
