"""Runtimes of the kind ``venv``: a requirements file, installed by pip into an environment of its own."""

from __future__ import annotations

import glob
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from ..spec.catalog import Runtime, RuntimeKind
from ..spec.errors import BrokenRuntimeError, UsageError
from . import requirements
from .activation import CONFLICTING, Activation, prepend
from .store import Definition, Manifest, Report, locks, source_text

if TYPE_CHECKING:
    from importlib.metadata import Distribution

_ASK_VERSION = "import sys, platform; print(platform.python_version(), sys.implementation.cache_tag)"
_OTHER_HASH = "DO NOT MATCH THE HASHES"  # then pip names packages, their addresses and both checksums
_TESTS = r"site-packages/.*/tests?/"


PIP = b"pip\n"
"""The content of INSTALLER in what pip has installed."""

_ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")
"""Variables with which pip would install somewhere else."""


def define(runtime: Runtime) -> Definition:
    """The definition of the environment: the requirements, with what they include, and the interpreter.

    Raises:
        UsageError: for a missing file or interpreter.
    """
    python = _interpreter(runtime)
    text = source_text(runtime.source, "The requirements")
    content = {"requirements 0": text, **requirements.describe(text, runtime.source, os.path.dirname(runtime.source))}
    content |= {"python": f"{python} {_version(python)}", "machine": platform.machine()}
    return Definition(RuntimeKind.VENV, runtime.source, content)


def _interpreter(runtime: Runtime) -> str:
    if runtime.python is None:
        return str(getattr(sys, "_base_executable", sys.executable))  # not a venv's own, which may disappear
    found = shutil.which(os.path.expanduser(runtime.python))
    if found is None:
        raise UsageError(f"Runtime {runtime.name}: python: {runtime.python}: there is no such program in PATH.")
    return found


def _version(python: str) -> str:
    if python == getattr(sys, "_base_executable", None):
        return f"{platform.python_version()} {sys.implementation.cache_tag}"
    done = subprocess.run([python, "-c", _ASK_VERSION], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError(f"{python} is no Python that works: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def make(
    runtime: Runtime, prefix: str, report: Report, *, trust_cache: bool
) -> tuple[Mapping[str, str], dict[str, str]]:
    """Make the environment.

    Args:
        trust_cache: let pip use its cache; False for repairs.

    Returns:
        Packages with versions; and the version of the interpreter.

    Raises:
        BrokenRuntimeError: with pip's last lines.
    """
    python = _interpreter(runtime)
    report("making an empty environment")
    run_tool([python, "-m", "venv", prefix], runtime, "an empty environment cannot be made")
    report("installing")
    pip = [f"{prefix}/bin/python", "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--quiet"]
    pip += ["--no-compile"]
    if not trust_cache:
        pip += ["--no-cache-dir"]
    run_tool([*pip, "-r", runtime.source], runtime, "pip cannot install its requirements")
    report("compiling")
    _compile(prefix)
    version = _version(f"{prefix}/bin/python").split()[0]
    return {str(d.metadata["Name"]): d.version for d in distributions(prefix)}, {"python": version}


def _compile(prefix: str) -> None:
    """Compile what programs import, on all CPUs; pip takes one, and as long again for the packages' own tests.

    Jobs cannot write into the environment: what is not compiled now is compiled by each job that imports it. A file
    that cannot be compiled does not matter.
    """
    workers = str(min(8, len(os.sched_getaffinity(0))))
    command = [f"{prefix}/bin/python", "-m", "compileall", "-q", "-j", workers, "-x", _TESTS, *site_packages(prefix)]
    environment = {k: v for k, v in os.environ.items() if k not in CONFLICTING}
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def run_tool(command: list[str], runtime: Runtime, failure: str, environment: Mapping[str, str] = os.environ) -> None:
    """Run a program that builds an environment, in the directory of its definition.

    Raises:
        BrokenRuntimeError: ``failure``, with what the program says about errors.
    """
    kept = {k: v for k, v in environment.items() if k not in CONFLICTING and k not in _ELSEWHERE}
    environment = kept | {"PIP_USER": "0"}  # not into ~/.local
    where = os.path.dirname(runtime.source)
    done = subprocess.run(
        command, env=environment, cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        pass_fds=locks(),
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
        start = next((n for n, line in enumerate(lines) if _OTHER_HASH in line), None)
        said = lines[start:] if start is not None else [line for line in lines if "error" in line.lower()]
        raise BrokenRuntimeError(
            f"Runtime {runtime.name} ({runtime.source}): {failure} (exit code {done.returncode}): "
            f"{' / '.join(filter(None, said or lines))[-500:].strip()}. By hand: {shlex.join(command)}"
        )


def site_packages(prefix: str) -> list[str]:
    """The directories of its packages."""
    directories = [d for d in (f"{prefix}/lib", f"{prefix}/lib64") if not os.path.islink(d)]  # one may be a link
    return sorted(site for d in directories for site in glob.glob(f"{glob.escape(d)}/python3*/site-packages"))


def by_pip(site: str) -> dict[str, str]:
    """The packages that pip has installed: "….dist-info" by normalized name."""
    found = {}
    for path in glob.glob(f"{glob.escape(site)}/*.dist-info/INSTALLER"):
        with suppress(OSError), open(path, "rb") as file:
            if file.read(100) == PIP:
                found[normalized(path.split("/")[-2])] = os.path.dirname(path)
    return found


def normalized(name: str) -> str:
    """The normalized name of a package, from its name or that of its "….dist-info"."""
    return re.sub(r"[-_.]+", "-", name.partition("-")[0] if name.endswith(".dist-info") else name).lower()


def distributions(prefix: str) -> Iterable[Distribution]:
    """Every installed package."""
    import importlib.metadata  # slow, and every use of a catalog imports this module

    return importlib.metadata.distributions(path=site_packages(prefix))


def activate(runtime: Runtime, manifest: Manifest, environment: Mapping[str, str]) -> Activation:
    """The effect of ``bin/activate``, and the removal of other environments' libraries, which it forgets."""
    prefix = manifest.prefix
    major, minor, *_ = manifest.details["python"].split(".")
    removed = (*CONFLICTING, "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_SHLVL", "CONDA_PROMPT_MODIFIER")
    return Activation(
        runtime=runtime.name,
        identity=manifest.identity,
        prefix=prefix,
        python=(int(major), int(minor)),
        variables={
            "PATH": prepend(environment.get("PATH", os.defpath), f"{prefix}/bin"),
            "VIRTUAL_ENV": prefix,
            **runtime.env,
        },
        removed=tuple(name for name in removed if name in environment and name not in runtime.env),
    )
