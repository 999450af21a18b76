"""A stand-in for the ``conda`` executable, on py-rattler: no registry here carries a working conda.

It does what Snakemake asks of conda, for real: ``info``, ``--version``, ``config``, ``env create``, ``env export``, and
``bin/activate``. Every call is written to the file that FORGE_TEST_CONDA_LOG names, so that tests can count them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml

CONDA = """#!/bin/sh
exec {python} {program} {base} "$@"
"""

ACTIVATE = """# sourced: activate PREFIX-OR-NAME
echo "activate $1" >> "${{FORGE_TEST_CONDA_LOG:-/dev/null}}"
eval "$({python} {program} {base} activate-script "$1")"
"""


def install(base: Path) -> Path:
    """Install the stand-in there; return its bin directory, for PATH."""
    bin_directory = base / "bin"
    bin_directory.mkdir(parents=True)
    (base / "envs").mkdir()
    names = {"python": sys.executable, "program": __file__, "base": base}
    (bin_directory / "conda").write_text(CONDA.format(**names))
    (bin_directory / "conda").chmod(0o755)
    (bin_directory / "activate").write_text(ACTIVATE.format(**names))
    return bin_directory


def _create(file: str, prefix: str) -> None:
    import rattler

    content = yaml.safe_load(Path(file).read_text())

    async def make() -> None:
        records = await rattler.solve(sources=content["channels"], specs=content["dependencies"])
        cache = Path(prefix).parent / "pkgs"
        cache.mkdir(exist_ok=True)
        await rattler.install(records, prefix, cache_dir=cache, show_progress=False)

    asyncio.run(make())


def _prefix(base: Path, address: str) -> Path:
    return Path(address) if "/" in address else base / "envs" / address


def _activate(base: Path, address: str) -> str:
    from rattler.shell import ActivationVariables, Shell, activate

    prefix = _prefix(base, address)
    if not (prefix / "conda-meta").is_dir():
        return f"echo 'no environment at {prefix}' >&2; false"
    return activate(prefix, ActivationVariables(), Shell.bash).script


def main(base: Path, arguments: list[str]) -> int:  # noqa: C901 - a table
    """One call of conda."""
    log = os.environ.get("FORGE_TEST_CONDA_LOG")
    if log and arguments[0] != "activate-script":
        with open(log, "a", encoding="utf-8") as file:
            file.write(" ".join(arguments) + "\n")

    def option(name: str) -> str:
        return arguments[arguments.index(name) + 1]

    answer: Any = None
    match arguments:
        case ["--version"]:
            print("conda 24.9.0")
        case ["info", "--json"]:
            envs = [str(base), *map(str, (base / "envs").iterdir())]
            answer = {"conda_prefix": str(base), "platform": "linux-64", "envs": envs}
        case ["config", "--get", "channel_priority", *_]:
            answer = {"get": {"channel_priority": "strict"}}
        case ["env", "create", *_]:
            _create(option("--file"), option("--prefix"))
        case ["env", "export", *_]:
            address = option("--name" if "--name" in arguments else "--prefix")
            answer = sorted(p.stem for p in (_prefix(base, address) / "conda-meta").glob("*.json"))
        case ["clean", *_]:
            pass  # there is no cache to clean
        case ["activate-script", address]:
            print(_activate(base, address))
        case _:
            print(f"this stand-in for conda does not know: {arguments}", file=sys.stderr)
            return 1
    if answer is not None:
        print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    code = 1
    try:
        code = main(Path(sys.argv[1]), sys.argv[2:])
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread of py-rattler can crash an interpreter that ends: see software/conda.py
