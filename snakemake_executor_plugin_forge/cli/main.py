"""``snakemake-forge``: questions about jobs that ran, and their answers.

Exit codes: 0 answered; 1 nothing matches, or less than required; 2 the question cannot be understood.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ..errors import ForgeError
from . import doctor, jobs, logs

NOTHING, MISUSE = 1, 2


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="snakemake-forge",
        description="What happened to jobs that ran under snakemake --executor forge, and what holds on this host.",
        epilog="Exit codes: 0 answered, 1 nothing matches or less than required, 2 the question cannot be understood.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (doctor, jobs, logs):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    options = build_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except ForgeError as error:
        print(f"snakemake-forge: {error}", file=sys.stderr)
        return MISUSE
    except BrokenPipeError:  # | head
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
