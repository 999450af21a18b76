"""Picking attempts: the options that several commands share."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError
from ..record.reader import Attempt


def add_command(commands: Any, name: str, text: str, examples: str) -> argparse.ArgumentParser:
    """Add a sub-command with what all have: examples below its help, and ``--directory``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-d", "--directory", default=".", metavar="DIR", help="the workflow's working directory (default: this one)"
    )
    return parser


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


def matching(attempts: Sequence[Attempt], rule: str, wildcards: dict[str, str]) -> list[Attempt]:
    """The attempts of a rule with those wildcard values.

    Raises:
        UsageError: for a rule or wildcard that no attempt has, naming the near miss.

    """
    of_rule = [a for a in attempts if a.rule == rule]
    if not of_rule:
        known = sorted({a.rule for a in attempts})
        near = difflib.get_close_matches(rule, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(known) or 'none'}."
        raise UsageError(f"No attempt of a rule {rule!r} is on record.{hint}")
    names = {name for a in of_rule for name in a.wildcards}
    for name in wildcards:
        if name not in names:
            raise UsageError(f"Rule {rule} has no wildcard {name!r}; it has {', '.join(sorted(names)) or 'none'}.")
    return [a for a in of_rule if all(a.wildcards.get(k) == v for k, v in wildcards.items())]
