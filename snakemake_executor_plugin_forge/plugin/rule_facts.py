"""The rules of a Snakefile, for ``snakemake-forge init``, as JSON on stdout.

A process of its own (``python -m snakemake_executor_plugin_forge.plugin.rule_facts DIRECTORY [SNAKEFILE]``): reading a
Snakefile runs its Python code.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def main() -> None:
    """Print a JSON list with an object for each rule; exit with 1 and Snakemake's message if there is an error."""
    directory, snakefile = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    with redirect_stdout(sys.stderr):  # what the Snakefile prints
        facts = read_rules(directory, snakefile)
    print(json.dumps(facts))


def read_rules(directory: Path, snakefile: str | None) -> list[dict[str, Any]]:
    """Read a Snakefile and describe its rules.

    Raises:
        SystemExit: if it cannot be read, after the message of Snakemake.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import OutputSettings, Quietness, ResourceSettings

    with SnakemakeApi(OutputSettings(quiet={Quietness.RULES, Quietness.PROGRESS})) as api:
        try:
            path = Path(snakefile).absolute() if snakefile else None
            found = api.workflow(ResourceSettings(cores=1), snakefile=path, workdir=directory)
            rules = list(found._workflow.rules)  # the interface has no other way to them
        except Exception as error:
            api.print_exception(error)
            raise SystemExit(1) from None
        return [describe(rule) for rule in rules]


def describe(rule: Any) -> dict[str, Any]:
    """Return the facts of one rule."""
    parts = {"shell": "shellcmd", "script": "script", "notebook": "notebook", "wrapper": "wrapper"}
    kinds = [kind for kind, attribute in parts.items() if getattr(rule, attribute, None)]
    runs = bool(kinds) or not getattr(rule, "norun", False)
    conda, container = getattr(rule, "conda_env", None), getattr(rule, "container_img", None)
    return {
        "name": rule.name,
        "kind": kinds[0] if kinds else "run" if runs else "",
        "resources": sorted(name for name in rule.resources if not name.startswith("_")),
        "conda": _path(conda, rule),
        "container": container if isinstance(container, str) else None,
    }


def _path(value: object, rule: Any) -> str | None:
    """Return the file of a ``conda:`` directive, which is relative to the rule's Snakefile; None for anything else."""
    if not isinstance(value, str) or "{" in value or not value.endswith((".yaml", ".yml", ".txt")):
        return None
    return os.path.normpath(os.path.join(os.path.dirname(str(rule.snakefile)), value))


if __name__ == "__main__":
    main()
