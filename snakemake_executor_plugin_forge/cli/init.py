"""``snakemake-forge init``: a first ``forge.yaml`` and profile, from the Snakefile, this host and what is on record."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..analysis.advise import COLUMNS, advise, memory_of_newest, profile_block
from ..kernel.imports import own_command
from ..record.index import open_index
from ..software.catalog_file import load
from ..spec.errors import UsageError
from ..spec.host import Host, missing_for
from ..spec.job import Require
from ..spec.paths import CATALOG_FILE, STATE
from ..spec.units import MEBIBYTE, show_bytes
from .doctor import probe, read_facts
from .select import add_command, local_path

PROFILE = "profiles/default/config.yaml"

_EXAMPLES = """examples:
  snakemake-forge init --dry-run            show what it would write
  snakemake-forge init                      write forge.yaml and profiles/default/config.yaml, then: snakemake
  snakemake-forge init -s workflow/Snakefile
"""


@dataclass(frozen=True, slots=True)
class RuleFacts:
    """One rule of the Snakefile."""

    name: str
    kind: str  # "shell", "run", "script", "notebook", "wrapper"; "" for a rule that runs nothing
    resources: frozenset[str]
    conda: str | None  # the file of its ``conda:``, absolute
    container: str | None


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "init", _EXAMPLES, directory=False)
    parser.add_argument(
        "-d", "--directory", type=local_path, default=".", metavar="DIR", help="the workflow's working directory"
    )
    text = "the Snakefile (default: where Snakemake looks)"
    parser.add_argument("-s", "--snakefile", type=local_path, metavar="FILE", help=text)
    parser.add_argument("-n", "--dry-run", action="store_true", help="print the files, and write none")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the files, or print them.

    Raises:
        UsageError: if one is there already, or Snakemake cannot read the Snakefile.
    """
    directory = os.path.realpath(options.directory)
    paths = [os.path.join(directory, name) for name in (CATALOG_FILE, PROFILE)]
    if present := [path for path in paths if os.path.lexists(path) and not options.dry_run]:
        raise UsageError(f"{' and '.join(present)}: there already. Nothing was written; see what init would write: -n")
    rules = read_rules(directory, options.snakefile)
    host = probe(directory)
    live = not any(rule.conda for rule in rules) or importlib.util.find_spec("rattler") is not None
    live = live and not any(rule.container for rule in rules)  # whose image may need an engine, and the network
    texts = [
        catalog_text(rules, host, directory, live=live),
        profile_text(host, _advice(directory), _more(rules, live=live)),
    ]
    for path, text in zip(paths, texts, strict=True):
        if options.dry_run:
            print(f"# ---- {path}\n{text}")
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
        print(path)
    if not options.dry_run:
        load(paths[0])  # so that a fault of these texts shows here
        print("\nNow: snakemake  (it finds the profile by itself); or first: snakemake-forge runtimes build")
    return 0


def read_rules(directory: str, snakefile: str | None) -> list[RuleFacts]:
    """Ask a process of Snakemake's for the rules.

    Raises:
        UsageError: with what Snakemake says, if it cannot read the Snakefile.
    """
    command = [*own_command("snakemake_executor_plugin_forge.plugin.rule_facts"), directory]
    command += [os.path.abspath(snakefile)] if snakefile else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace", cwd=directory)
    if done.returncode != 0:
        raise UsageError(f"Snakemake cannot read the Snakefile:\n{done.stderr.strip()}")
    found = json.loads(done.stdout)
    return [
        RuleFacts(one["name"], one["kind"], frozenset(one["resources"]), one["conda"], one["container"])
        for one in found
    ]


def _more(rules: Sequence[RuleFacts], *, live: bool) -> list[str]:
    """Further lines of the profile."""
    lines = []
    if not live and any(rule.conda for rule in rules) and shutil.which("conda"):
        lines.append(
            "software-deployment-method: conda   # the rules' conda: directives; Snakemake makes these environments"
        )
    if read_facts().in_slurm_job:
        lines.append(
            "# This is a job of Slurm, and the workflow's jobs run in it. To submit them: forge-backend: slurm"
        )
    return lines


def _advice(directory: str) -> str:
    """The block of ``snakemake-forge advise`` for a profile; "" if nothing is on record."""
    if not os.path.isdir(os.path.join(directory, STATE, "runs")):
        return ""
    with open_index(directory) as index:
        return profile_block(advise(index.rows(columns=COLUMNS), run_memory_bytes=memory_of_newest(index.runs())))


# -- the texts: pure -----------------------------------------------------------------------------------------------

_CATALOG = """\
# The catalog of Forge. All keys: docs/reference/catalog.md, or: snakemake-forge runtimes schema
version: 1

defaults:
  runtime: host              # of rules without another: what Snakemake was started in
{defaults}
{runtimes}

# protect: [/srv/database]   # paths that no job sees
# provenance: /srv/crates    # where each run leaves a description of what it made
"""
_PROFILE = """\
# A profile: every flag of Snakemake and of Forge is a key, without its dashes.
executor: forge
cores: {cores}
# scheduler: forge           # for thousands of jobs: chooses in no time (Snakemake 9.10 or newer)
# logger: forge              # shows the progress of the run

# This host enforces '{level}' now; a run on a host that enforces less is refused.
forge-require: {level}
{lacks}# forge-run-memory: 90%      # of this host's memory, for all jobs together: {memory}
{more}
{advice}
"""
_NO_ADVICE = "# After the first run, snakemake-forge advise prints lines for here, from what the jobs have used."


def catalog_text(rules: Sequence[RuleFacts], host: Host, directory: str, *, live: bool) -> str:
    """Return a ``forge.yaml``: what holds is in it, and what may help is a comment.

    Args:
        live: whether Forge can make the environments that the rules name.
    """
    working = [rule for rule in rules if rule.kind]
    unlimited = [rule.name for rule in working if "mem_mb" not in rule.resources]
    endless = [rule.name for rule in working if "runtime" not in rule.resources]
    share = max(256, host.run_memory_bytes // max(1, host.cpus) // MEBIBYTE // 128 * 128)
    defaults = []
    if unlimited:
        defaults += [f"  # memory: {share}MiB         # of a job without mem_mb; this is one core's share of this host"]
        defaults += _names("  # Rules without mem_mb, which only the run limits:", unlimited)
    if endless:
        defaults += ["  # wall: 24h                # of a job without runtime"]
        defaults += _names("  # Rules without runtime:", endless)
    runtimes = "\n".join(_runtimes(working, directory, live=live))
    return _CATALOG.format(defaults="".join(f"{line}\n" for line in defaults), runtimes=runtimes)


def _names(head: str, names: Iterable[str]) -> list[str]:
    """A comment with names, in lines of readable length."""
    return textwrap.wrap(f"{head} {', '.join(names)}", 100, subsequent_indent="  #   ", break_on_hyphens=False)


def _runtimes(rules: Sequence[RuleFacts], directory: str, *, live: bool) -> list[str]:
    """The named runtimes of the ``conda:`` and ``container:`` directives, each with its rules."""
    values = sorted({(value, key) for rule in rules for key, value in _environments(rule)})
    if not values:
        return ["# runtimes:                # named environments: docs/how-to/runtimes.md", "#   py: {venv: req.txt}"]
    names: dict[str, str] = {}
    entries = []
    for value, key in values:
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", os.path.basename(value).partition(":")[0].rsplit(".", 1)[0]).strip("-.")
        name = stem if stem[:1].isalpha() and stem != "host" else f"env-{stem}"
        while name in names.values():
            name += "-2"
        names[value] = name
        entries.append(
            f"  {name}: {{{key}: {json.dumps(os.path.relpath(value, directory) if key == 'conda' else value)}}}"
        )
    used = [f"  {json.dumps(rule.name)}: {names[value]}" for rule in rules for _, value in _environments(rule)[:1]]
    block = ["runtimes:", *entries, "rules:", *used]
    if live:
        return ["# The environments that the rules name, made by Forge: snakemake-forge runtimes build", *block]
    head = "# The environments that the rules name. Forge makes them once they are no comment; conda needs the extra:"
    return [head, "# pip install 'snakemake-executor-plugin-forge[conda]'", *(f"# {line}" for line in block)]


def _environments(rule: RuleFacts) -> list[tuple[str, str]]:
    found = (("conda", rule.conda), ("container", rule.container))
    return [(key, value) for key, value in found if value]


def profile_text(host: Host, advice: str, more: Sequence[str] = ()) -> str:
    """Return the ``config.yaml`` of a profile that runs at once on this host."""
    level = next(one for one in (Require.FULL, Require.LIMITS, Require.NONE) if not missing_for(one, host))
    lacks = "; ".join(missing_for(Require.FULL, host)) if level is not Require.FULL else ""
    return _PROFILE.format(
        cores=host.cpus,
        level=level,
        lacks=f"# It lacks {lacks}. What would change that: snakemake-forge doctor\n" if lacks else "",
        memory=show_bytes(host.run_memory_bytes),
        more="".join(f"{line}\n" for line in more),
        advice=f"# From the jobs on record (snakemake-forge advise):\n{advice}".rstrip() if advice else _NO_ADVICE,
    )
