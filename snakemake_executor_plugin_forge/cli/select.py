"""Options that several commands share, and the attempts that they pick."""

from __future__ import annotations

import argparse
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..record.index import DAMAGED_ARCHIVE, Index, Row, Selection, open_index
from ..spec.errors import NothingFoundError, UsageError, near_miss
from ..spec.paths import CATALOG_FILE, STATE
from .commands import COMMANDS

HERE = "."


def add_command(commands: Any, name: str, examples: str, *, directory: bool = True) -> argparse.ArgumentParser:
    """Add a sub-command with examples below its help and, unless it reads no record, ``--directory``."""
    text = COMMANDS[name]
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if directory:
        add_directory(parser, HERE)
    return parser


def add_directory(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--directory``; ``default`` may be :data:`argparse.SUPPRESS`, after a verb that has an own parser."""
    text = "the workflow's working directory (default: this one, or the next above it with a record or a forge.yaml)"
    parser.add_argument("-d", "--directory", type=local_path, default=default, metavar="DIR", help=text)


def local_path(text: str) -> str:
    """Check the path of an argument, for argparse: as a path, an address would name a directory ``https:`` here."""
    if re.match(r"[A-Za-z][\w+.-]*://", text):
        raise argparse.ArgumentTypeError(f"{text!r} is an address; name a file or directory of this host")
    return text


def nearest_record(directory: str) -> str:
    """Return the directory that the user most likely means: this one, or the next above it with a record or a catalog.

    A directory in which everybody may write, such as ``/tmp``, is nobody's project: whoever made a record there would
    answer for all directories below it.
    """
    path = os.path.abspath(directory)
    while not any(os.path.exists(os.path.join(path, name)) for name in (STATE, CATALOG_FILE)):
        above = os.path.dirname(path)
        if above == path or not os.access(above, os.X_OK) or os.stat(above).st_mode & stat.S_IWOTH:
            return directory
        path = above
    return directory if os.path.samefile(path, directory) else path


def add_rule(parser: argparse.ArgumentParser, name: str = "--rule", text: str = "only this rule", **more: Any) -> None:
    """Add an argument for one rule, which a shell can complete."""
    rule: Any = parser.add_argument(name, metavar="RULE", help=text, **more)
    rule.completer = complete_rule


def add_catalog(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``."""
    text = "the catalog (default: forge.yaml in the directory)"
    parser.add_argument("--config", type=local_path, metavar="FILE", help=text)


def number(kind: type[int | float], lowest: float, highest: float = math.inf) -> Callable[[str], float]:
    """Make a type for argparse: a number between two bounds."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if lowest <= (value := kind(text)) <= highest:
                return value
        what = "a whole number" if kind is int else "a number"
        bounds = f"{lowest} or more" if highest == math.inf else f"from {lowest} to {highest}"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}, {bounds}")

    return parse


def add_run(parser: Any, default: str = "the newest") -> None:
    """Add ``--run``.

    Args:
        default: what the command reads without it.
    """
    text = f"this run: the beginning of its name, or -1 for the newest, -2 for the one before (default: {default})"
    parser.add_argument("--run", dest="name", metavar="RUN", help=text)


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add ``RULE WILDCARD=VALUE …`` of :func:`newest`, which a shell can complete."""
    add_rule(parser, "rule", "the rule's name (default: the newest failure of any job)", nargs="?")
    wildcards: Any = parser.add_argument("wildcards", nargs="*", metavar="WILDCARD=VALUE")
    wildcards.completer = complete_wildcards
    parser.set_defaults(name=None)


def complete_rule(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """List the rules on record, for argcomplete."""
    try:
        with open_index(parsed_args.directory) as index:
            return sorted(index.rules())
    except UsageError:
        return []


def complete_wildcards(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """List the wildcards of the rule with their values, for argcomplete."""
    try:
        with open_index(parsed_args.directory) as index:
            rows = index.rows(Selection(rule=parsed_args.rule))
            return sorted({f"{key}={value}" for row in rows for key, value in row["wildcards"].items()})
    except UsageError:
        return []


def parse_wildcards(pairs: Sequence[str], known: Collection[str] = ()) -> dict[str, str]:
    """Read words like ``sample=A`` as a dictionary.

    Args:
        known: the wildcards of the rule, for the message.

    Raises:
        UsageError: for a word without ``=``.
    """
    wildcards = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            example = f"{min(known)}={pair or 'A'}" if known else "sample=A"
            raise UsageError(f"{pair!r} is no wildcard; write it like {example}.")
        wildcards[name] = value
    return wildcards


def check_job(index: Index, rule: str | None, wildcards: dict[str, str]) -> None:
    """Refuse a rule, or a wildcard of a rule, that no attempt on record has.

    Raises:
        UsageError: names the near miss.
    """
    known = index.rules() if rule is not None or wildcards else {}
    if rule is None:
        names = {name for of_rule in known.values() for name in of_rule}
        for name in wildcards.keys() - names:
            raise UsageError(f"No rule on record has a wildcard {name!r}.{near_miss(name, sorted(names))}")
        return
    if rule not in known:
        raise UsageError(f"No attempt of a rule {rule!r} is on record.{near_miss(rule, sorted(known))}")
    for name in wildcards:
        if name not in known[rule]:
            raise UsageError(f"Rule {rule} has no wildcard {name!r}.{near_miss(name, sorted(known[rule]))}")


def open_records(directory: str) -> Index:
    """Open the index as :func:`..record.index.open_index`, and say on stderr what of the records is damaged."""
    index = open_index(directory)
    for _, run in index.runs():
        for sentence in run.get(DAMAGED_ARCHIVE, ()):
            print(f"snakemake-forge: {sentence}.", file=sys.stderr)
    return index


def newest(options: argparse.Namespace, *, running: bool = False) -> Row:
    """Return the whole record of the newest attempt of the job that ``options`` names.

    If several jobs match, one whose newest attempt failed comes first: of 400 jobs, the user means that one. Without a
    rule, it is the newest failure; those of jobs that have succeeded since come last.

    Args:
        running: attempts that run come before all others.

    Raises:
        UsageError: see :func:`check_job`.
        NothingFoundError: if no attempt matches.
    """
    if "=" in (options.rule or ""):
        raise UsageError(f"Name the rule before {options.rule}. All jobs with it: snakemake-forge jobs {options.rule}")
    with open_records(options.directory) as index:
        run = pick_run(index, options.name) if options.name else None
        if options.rule is None:
            failed = Selection(run=run)
            found = index.newest_failure(replace(failed, last=True))
            if found is None:
                found = index.newest_failure(failed)
                if found is None:
                    raise NothingFoundError("No attempt on record has failed.")
                found["notes"] += ["the job has succeeded since"]
            return found
        known = index.rules().get(options.rule, set())
        wildcards = parse_wildcards(options.wildcards, known)
        check_job(index, options.rule, wildcards)
        selection = Selection(rule=options.rule, wildcards=wildcards, run=run)
        found = index.newest(replace(selection, running=True)) if running else None
        if found is None and known - wildcards.keys():
            found = index.newest_failure(replace(selection, last=True))
        found = found or index.newest(selection)
        if found is None:
            raise _no_such_job(index, options.rule, wildcards)
    return found


def _no_such_job(index: Index, rule: str, wildcards: dict[str, str]) -> NothingFoundError:
    """Make the error for a job that no attempt of the rule is of; names the near miss."""
    for name, value in wildcards.items():
        known = {row["wildcards"].get(name, "") for row in index.rows(Selection(rule=rule))}
        if value not in known:
            return NothingFoundError(f"No attempt of rule {rule} has {name}={value}.{near_miss(value, sorted(known))}")
    return NothingFoundError("No attempts match.")


def pick_run(index: Index, wanted: str | None) -> str:
    """Return the name of the run that the user wants, or of the newest.

    Raises:
        NothingFoundError: if no run is on record.
        UsageError: for a run that does not exist; names the nearest.
    """
    names = [name for name, _ in index.runs()]
    if not names:
        raise NothingFoundError("No runs are on record.")
    if wanted is None or wanted in names:
        return wanted or names[-1]
    if re.fullmatch(r"-\d{1,9}", wanted):
        if 1 <= -int(wanted) <= len(names):
            return names[int(wanted)]
        raise UsageError(
            f"--run {wanted}: {len(names)} runs are on record; -1 is the newest, -{len(names)} the oldest."
        )
    match [name for name in names if name.startswith(wanted)]:
        case [name]:
            return name
        case []:
            raise UsageError(f"--run {wanted}: there is no such run.{near_miss(wanted, names)}")
        case [first, *_, last] as several:
            raise UsageError(f"--run {wanted}: {len(several)} runs begin like this, from {first} to {last}.")
    raise AssertionError
