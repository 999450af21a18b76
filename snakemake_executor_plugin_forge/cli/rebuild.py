"""The command that makes exactly these files again, from the command of an earlier run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, suppress
from io import StringIO
from itertools import islice
from typing import Any

_OWN = ("force", "forceall", "forcerun", "until", "omit_from", "touch", "dryrun", "prioritize", "batch", "summary")
"""Options with which the old command would do more, or less, than make these files."""

_NEWEST = 20  # how many earlier runs to try


def rebuild_command(options: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The command line with which Snakemake makes existing ``targets`` again, and no other file that is up to date.

    ``--force`` forces the targets of the command line and no others: ``snakemake --help``.
    """
    return ["snakemake", *options, "--force", "--", *targets]


def usable_options(commands: Iterable[Sequence[str]]) -> list[str]:
    """The options of the newest plain run: Snakefile, profile, configuration.

    Args:
        commands: ``sys.argv`` of the runs, newest first.
    """
    for command in islice(commands, _NEWEST):
        options = options_of(command[1:])
        if options is not None:
            return options
    return ["--executor", "forge", "--cores", "1"]


def options_of(arguments: Sequence[str]) -> list[str] | None:
    """The arguments without targets; None if that is not clear, or they would do more or less than make targets."""
    before = _parsed(arguments)
    if before is None or not arguments or any(before.get(name) for name in _OWN):
        return None
    targets = set(before.get("targets") or ())
    found = list(arguments)
    for place in range(len(arguments) - 1, -1, -1):  # a word can be a target here and the value of an option there
        if arguments[place] in targets:
            shorter = found[:place] + found[place + 1 :]
            after = _parsed(shorter)
            if after is not None and _without_targets(after) == _without_targets(before):
                found = shorter
    if found and found[-1] == "--":
        found.pop()
    after = _parsed(found)
    return found if after is not None and not after.get("targets") else None


def _without_targets(parsed: dict[str, Any]) -> dict[str, str]:
    """The parsed options as texts, without the memory addresses in the representation of some objects."""
    return {key: repr(getattr(value, "__dict__", value)) for key, value in parsed.items() if key != "targets"}


def _parsed(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The arguments as Snakemake parses them; None if it refuses them."""
    # Imported here: Snakemake takes half a second, and only this needs it.
    from snakemake.cli import get_argument_parser

    with suppress(SystemExit, Exception), redirect_stderr(StringIO()):
        parsed: dict[str, Any] = vars(get_argument_parser().parse_args(list(arguments)))
        return parsed
    return None
