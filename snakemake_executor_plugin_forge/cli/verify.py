"""``snakemake-forge verify``: outputs that have changed since their job, and the command that makes them again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..analysis.outputs import Found, OutputState, compare_all, newest
from ..record.index import Selection
from ..spec.printable import shell_words
from .rebuild import rebuild_command, usable_options
from .select import add_command, add_rule, check_job, open_records
from .show import print_json, print_table

_EXAMPLES = """examples:
  snakemake-forge verify                all outputs on record
  snakemake-forge verify call           outputs of one rule
  snakemake-forge verify --json

For each output, the newest attempt that succeeded counts. Outputs that temp() has removed are no damage.
The exit code is 1 if an output is changed, unreadable or missing.
"""
_WRONG = (OutputState.CHANGED, OutputState.UNREADABLE)


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "verify", _EXAMPLES)
    add_rule(parser, "rule", "only outputs of this rule", nargs="?")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare the outputs with the record; return 1 unless all are sound."""
    with open_records(options.directory) as index:
        check_job(index, options.rule, {})
        published = newest(index.with_entries("$.outputs", Selection()))
        runs = index.runs()
        alive = index.alive
    if options.rule is not None:
        published = [output for output in published if output.rule == options.rule]
    found = tuple(compare_all(options.directory, published))
    commands = [[str(word) for word in record.get("command") or ()] for _, record in reversed(runs)]
    answer = _Findings(found, commands)
    if options.json:
        print_json(answer.as_json())
    else:
        answer.show()
        if alive:
            print("A run is active here: outputs that it replaces meanwhile can look changed.", file=sys.stderr)
    return 0 if answer.all_sound else 1


class _Findings:
    """The state of the outputs, and the commands that make damaged or missing ones again."""

    def __init__(self, found: Sequence[Found], commands: Sequence[Sequence[str]]) -> None:
        """Sort the outputs; ``commands`` are the ones of the runs on record, the newest first."""
        self.found = found
        self.wrong = [item for item in found if item.state in _WRONG]
        self.missing = [item for item in found if item.state is OutputState.MISSING]
        self.sound = [item for item in found if item.state is OutputState.SOUND]
        self.samples_only = sum(bool(item.why) for item in self.sound)
        self.used_up = sum(item.state is OutputState.USED_UP for item in found)
        options = usable_options(commands) if self.wrong or self.missing else []
        self.rebuild = _command(options, self.wrong)
        self.remake = _command(options, self.missing)

    @property
    def all_sound(self) -> bool:
        """Whether there are outputs, and none of them is damaged or missing."""
        return bool(self.found) and not self.wrong and not self.missing

    def as_json(self) -> dict[str, object]:
        """The JSON object; docs/reference/cli.md has its fields."""
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
        """Print the findings for people."""
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
            + (f"; temp() has removed {self.used_up}" if self.used_up else "")
            + "."
        )
        pairs = (("Make exactly the changed ones again", self.rebuild), ("Make the missing ones", self.remake))
        for words, command in pairs:
            if command is not None:
                print(f"\n{words}:\n  {shell_words(command)}")
        if self.rebuild is not None:
            print("Then run the workflow again: Snakemake remakes the files that jobs have made from the wrong ones.")


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
