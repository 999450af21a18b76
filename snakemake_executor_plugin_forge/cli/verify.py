"""``snakemake-forge verify``: outputs that are not what was published, and the command that makes them again."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from ..record.index import Selection, open_index
from ..record.outputs import Found, State, compare_all, newest
from .rebuild import rebuild_command, usable_options
from .select import add_command, add_rule, check_job
from .show import print_json, print_table

_EXAMPLES = """examples:
  snakemake-forge verify                all outputs on record
  snakemake-forge verify call           those of one rule
  snakemake-forge verify --json

Of each output the newest attempt that succeeded counts. Outputs that temp() has removed are no damage.
Exit code 1 if an output is changed, unreadable or missing.
"""
_WRONG = (State.CHANGED, State.UNREADABLE)


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "verify", _EXAMPLES)
    add_rule(parser, "rule", "only outputs of this rule", nargs="?")
    parser.add_argument("--json", action="store_true", help="a JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare and say."""
    with open_index(options.directory) as index:
        check_job(index, options.rule, {})
        published = newest(index.with_entries("$.outputs", Selection()))
        runs = index.runs()
        alive = index.alive
    if options.rule is not None:
        published = [output for output in published if output.rule == options.rule]
    found = tuple(compare_all(options.directory, published))
    commands = [[str(word) for word in record.get("command") or ()] for _, record in reversed(runs)]
    answer = _Answer(found, commands)
    if options.json:
        print_json(answer.as_json())
    else:
        answer.show()
        if alive:
            print("A run is going on here: outputs that it replaces meanwhile can look changed.", file=sys.stderr)
    return 0 if answer.all_sound else 1


class _Answer:
    """What was found, and the commands that make anew what is not sound."""

    def __init__(self, found: Sequence[Found], commands: Sequence[Sequence[str]]) -> None:
        """Args: ``commands``: those of the runs on record, the newest first."""
        self.found = found
        self.wrong = [item for item in found if item.state in _WRONG]
        self.missing = [item for item in found if item.state is State.MISSING]
        self.sound = [item for item in found if item.state is State.SOUND]
        self.samples_only = sum(bool(item.why) for item in self.sound)
        self.used_up = sum(item.state is State.USED_UP for item in found)
        options = usable_options(commands) if self.wrong or self.missing else []
        self.rebuild = _command(options, self.wrong)
        self.remake = _command(options, self.missing)

    @property
    def all_sound(self) -> bool:
        """Whether there are outputs, and nothing is to be done about them."""
        return bool(self.found) and not self.wrong and not self.missing

    def as_json(self) -> dict[str, object]:
        """Fields: docs/reference/cli.md."""
        return {
            "checked": len(self.found),
            "sound": len(self.sound),
            "samples_only": self.samples_only,
            "used_up": self.used_up,
            "damaged": [_row(item) for item in self.wrong],
            "missing": [_row(item) for item in self.missing],
            "rebuild": self.rebuild,
            "rebuild_missing": self.remake,
        }

    def show(self) -> None:
        """For people."""
        if not self.found:
            print("No output is on record.")
            return
        damage = [*self.wrong, *self.missing]
        if damage:
            rows = [(item.published.path, item.published.rule, str(item.state), item.why) for item in damage]
            print_table(("OUTPUT", "RULE", "STATE", "WHY"), rows)
            print()
        print(
            f"{len(self.sound)} of {len(self.found)} outputs are as they were published"
            + (f" ({self.samples_only} of them by samples or size only)" if self.samples_only else "")
            + (f"; {self.used_up} of temp() gone, as it should be" if self.used_up else "")
            + "."
        )
        pairs = (("Make exactly the changed ones again", self.rebuild), ("Make the missing ones", self.remake))
        for words, command in pairs:
            if command is not None:
                print(f"\n{words}:\n  {shlex.join(command)}")
        if self.rebuild is not None:
            print("What was made of them meanwhile may be wrong too: snakemake -R with their names makes that anew.")


def _command(options: list[str], found: Sequence[Found]) -> list[str] | None:
    return rebuild_command(options, [item.published.path for item in found]) if found else None


def _row(item: Found) -> dict[str, object]:
    output = item.published
    return {
        "path": output.path,
        "rule": output.rule,
        "wildcards": output.wildcards,
        "state": str(item.state),
        "why": item.why,
        "bytes": output.size_bytes,
        "checksum": output.checksum,
        "covers": output.covers,
        "directory": output.directory,
    }
