"""``snakemake-forge completion``: the script with which TAB completes commands, options, rules and wildcards."""

from __future__ import annotations

import argparse
from typing import Any

from .select import add_command

_EXAMPLES = """examples:
  eval "$(snakemake-forge completion bash)"          for this shell; put the line into ~/.bashrc to keep it
  eval "$(snakemake-forge completion zsh)"           for zsh; put the line into ~/.zshrc, after compinit
  snakemake-forge completion fish > ~/.config/fish/completions/snakemake-forge.fish
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "completion", _EXAMPLES, directory=False)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], metavar="{bash,zsh,fish}")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    import argcomplete  # only here and where a shell asks

    print(argcomplete.shellcode(["snakemake-forge"], shell=options.shell))
    return 0
