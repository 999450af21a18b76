"""Picking attempts: the options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..errors import NothingFoundError, UsageError
from ..hints import near_miss
from ..record.index import Index, Row, Selection, open_index
from .commands import COMMANDS


def add_command(commands: Any, name: str, examples: str, *, directory: bool = True) -> argparse.ArgumentParser:
    """Add a sub-command with what all have: examples below its help and, unless it reads nothing, ``--directory``."""
    text = COMMANDS[name]
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if directory:
        parser.add_argument(
            "-d", "--directory", default=".", metavar="DIR", help="the workflow's working directory (default: this one)"
        )
    return parser


def add_rule(parser: argparse.ArgumentParser, name: str = "--rule", text: str = "only this rule", **more: Any) -> None:
    """Add one rule, which a shell can complete, as an option or under another name."""
    rule: Any = parser.add_argument(name, metavar="RULE", help=text, **more)
    rule.completer = complete_rule


def add_run(parser: Any) -> None:
    """Add ``--run``."""
    parser.add_argument("--run", dest="name", metavar="RUN", help="this run, by its name (default: the newest)")


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add ``RULE WILDCARD=VALUE …``, which a shell can complete."""
    add_rule(parser, "rule", "the rule's name")
    wildcards: Any = parser.add_argument("wildcards", nargs="*", metavar="WILDCARD=VALUE")
    wildcards.completer = complete_wildcards


def complete_rule(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """The rules on record, for argcomplete."""
    try:
        with open_index(parsed_args.directory) as index:
            return sorted(index.rules())
    except UsageError:
        return []


def complete_wildcards(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """The wildcards of the rule with their values, for argcomplete."""
    try:
        with open_index(parsed_args.directory) as index:
            rows = index.rows(Selection(rule=parsed_args.rule))
            return sorted({f"{key}={value}" for row in rows for key, value in row["wildcards"].items()})
    except UsageError:
        return []


def parse_wildcards(pairs: Sequence[str]) -> dict[str, str]:
    """``sample=A`` to a dictionary.

    Raises:
        UsageError: for a word without ``=``.

    """
    wildcards = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{pair!r} is no wildcard; write it like sample=A.")
        wildcards[name] = value
    return wildcards


def check_job(index: Index, rule: str | None, wildcards: dict[str, str]) -> None:
    """Refuse what no attempt has.

    Raises:
        UsageError: for a rule or wildcard that is not on record, naming the near miss.

    """
    if rule is None:
        return
    known = index.rules()
    if rule not in known:
        raise UsageError(f"No attempt of a rule {rule!r} is on record.{near_miss(rule, sorted(known))}")
    for name in wildcards:
        if name not in known[rule]:
            names = ", ".join(sorted(known[rule])) or "none"
            raise UsageError(f"Rule {rule} has no wildcard {name!r}; it has {names}.")


def newest(options: argparse.Namespace) -> Row:
    """The whole record of the newest attempt of the job that ``options`` names.

    Raises:
        UsageError: see :func:`check_job`.
        NothingFoundError: if there is none.

    """
    wildcards = parse_wildcards(options.wildcards)
    with open_index(options.directory) as index:
        check_job(index, options.rule, wildcards)
        found = index.newest(Selection(rule=options.rule, wildcards=wildcards))
    if found is None:
        raise no_attempts()
    return found


def no_attempts() -> NothingFoundError:
    """What to raise where no attempt meets the conditions."""
    return NothingFoundError("No attempts match.")


def pick_run(index: Index, wanted: str | None) -> str:
    """The name of the run that is wanted; of the newest by default.

    Raises:
        NothingFoundError: if there are no runs.
        UsageError: for one that does not exist, with the nearest.

    """
    names = [name for name, _ in index.runs()]
    if not names:
        raise NothingFoundError("No runs are on record.")
    if wanted is not None and wanted not in names:
        raise UsageError(f"--run {wanted}: there is no such run.{near_miss(wanted, names)}")
    return wanted or names[-1]
