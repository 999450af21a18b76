"""``snakemake-forge``: questions about jobs, and their answers.

Exit codes: 0 answered; 1 no match, or less than required; 2 invalid question; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import NoReturn, TextIO, cast

from ..spec.errors import ForgeError, HostError, NothingFoundError, UsageError, near_miss
from .commands import COMMANDS
from .select import HERE, nearest_record
from .show import PrintableStream

NOTHING, MISUSE, INTERRUPTED = 1, 2, 130

_EPILOG = """examples:
  snakemake-forge jobs --failed            attempts that did not succeed
  snakemake-forge why call sample=A        why, and what to change
  snakemake-forge COMMAND --help           examples of each command

exit codes: 0 answered, 1 no match or less than required, 2 invalid question, 130 Ctrl-C
"""


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of the command line.

    Args:
        wanted: the only command that needs its options: other commands' modules are not imported. None: all.
    """
    parser = argparse.ArgumentParser(
        prog="snakemake-forge",
        description="Answers questions about jobs of snakemake --executor forge, and about this host.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        if wanted is None or name == wanted:
            importlib.import_module(f"{__package__}.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=text)
    return parser


class _Version(argparse.Action):
    """Prints the version, and reads it only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        from importlib.metadata import version

        print(f"snakemake-forge {version('snakemake-executor-plugin-forge')}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one question; the entry point of the console script."""
    words = sys.argv[1:] if arguments is None else arguments
    if "_ARGCOMPLETE" in os.environ:  # a shell wants to complete a word
        import argcomplete

        argcomplete.autocomplete(build_parser())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # names of files are bytes
    out, err = cast(TextIO, PrintableStream(sys.stdout)), cast(TextIO, PrintableStream(sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        return _answer(words)


def _answer(words: Sequence[str]) -> int:
    try:
        parser = build_parser(_command(words))
        options, more = parser.parse_known_args(words)
        options.more = more
        if options.more and not getattr(options, "takes_more", False):
            see = f"see: snakemake-forge {options.command} --help"
            parser.error(f"unrecognized arguments: {' '.join(options.more)}; {see}")
        if getattr(options, "directory", None) == HERE:
            options.directory = nearest_record(HERE)
        run: Callable[[argparse.Namespace], int] = options.run
        code = _carry_out(run, options)
        sys.stdout.flush()  # here, where the handler below sees a closed pipe
    except NothingFoundError as answer:
        print(answer, file=sys.stderr)
        return NOTHING
    except ForgeError as error:
        print("snakemake-forge:", error, file=sys.stderr)
        return MISUSE
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _carry_out(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command.

    Raises:
        HostError: if the index is damaged; it is removed then, and the next command makes it from the records.
    """
    try:
        return run(options)
    except Exception as error:
        of_index = type(error).__module__ == "sqlite3"
        directory = getattr(options, "directory", None)
        if isinstance(error, ForgeError | OSError) or directory is None:
            raise
        from ..record.index import is_damaged, remove_index
        from ..spec.paths import STATE

        state = os.path.join(os.path.abspath(directory), STATE)
        if not of_index and not is_damaged(state):
            raise
        with suppress(OSError):
            remove_index(state)
        raise HostError(f"The index in {state} is damaged ({error}). It is removed: give the command again.") from error


def _command(words: Sequence[str]) -> str:
    """Return the command among the words, or "".

    Raises:
        UsageError: for a command that does not exist; names the nearest.
    """
    name = words[0] if words else ""
    if name and not name.startswith("-") and name not in COMMANDS:
        raise UsageError(f"There is no command {name!r}.{near_miss(name, COMMANDS)}")
    return name


if __name__ == "__main__":
    sys.exit(main())
