"""A hook of mkdocs: fills the page of commands with what each command's ``--help`` says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from snakemake_executor_plugin_forge.cli.commands import COMMANDS

MARK = "<!-- the help of each command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark by a section for each command."""
    return markdown.replace(MARK, _sections()) if MARK in markdown else markdown


def _sections() -> str:
    texts = []
    for name in COMMANDS:
        command = [sys.executable, "-m", "snakemake_executor_plugin_forge.cli.main", name, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"COLUMNS": "100"})
        texts.append(f"## {name}\n\n```text\n{done.stdout}```\n")
    return "\n".join(texts)
