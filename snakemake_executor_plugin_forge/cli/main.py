"""``snakemake-forge``: questions about jobs that ran, and their answers.

Exit codes: 0 answered; 1 nothing matches, or less than required; 2 the question cannot be understood; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from ..errors import ForgeError, NothingFoundError, UsageError
from ..hints import near_miss
from .commands import COMMANDS

NOTHING, MISUSE, INTERRUPTED = 1, 2, 130
_EPILOG = """examples:
  snakemake-forge jobs --failed            what went wrong
  snakemake-forge why call sample=A        why, and what to change
  snakemake-forge COMMAND --help           examples of each command

exit codes: 0 answered, 1 nothing matches or less than required, 2 the question cannot be understood, 130 Ctrl-C
"""


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """The command line.

    Args:
        wanted: the only command whose options are needed: the modules of the others are not imported. None: all.

    """
    parser = argparse.ArgumentParser(
        prog="snakemake-forge",
        description="What happened to jobs that ran under snakemake --executor forge, and what holds on this host.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        if wanted is None or name == wanted:
            importlib.import_module(f"{__package__}.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=text)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    words = sys.argv[1:] if arguments is None else arguments
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for the next word
        import argcomplete

        argcomplete.autocomplete(build_parser())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # names of files are bytes
    try:
        parser = build_parser(_command(words))
        options, more = parser.parse_known_args(words)
        options.more = more
        if options.more and not getattr(options, "takes_more", False):
            parser.error(f"unrecognized arguments: {' '.join(options.more)}")
        run: Callable[[argparse.Namespace], int] = options.run
        code = run(options)
        sys.stdout.flush()  # here, where a closed pipe can be noticed
    except NothingFoundError as answer:
        print(answer, file=sys.stderr)
        return NOTHING
    except ForgeError as error:
        print(f"snakemake-forge: {error}", file=sys.stderr)
        return MISUSE
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _command(words: Sequence[str]) -> str:
    """The command among the words; "" if there is none.

    Raises:
        UsageError: for one that does not exist, with the nearest.

    """
    name = words[0] if words else ""
    if name and not name.startswith("-") and name not in COMMANDS:
        raise UsageError(f"There is no command {name!r}.{near_miss(name, COMMANDS)}")
    return name


if __name__ == "__main__":
    sys.exit(main())
