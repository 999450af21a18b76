"""``snakemake-forge runtimes check``: a check of every file and library, and a real job in each runtime."""

from __future__ import annotations

import argparse
import os
import pickle
import queue
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir, closing
from dataclasses import dataclass

from ..run.engine import Engine, RunRequest
from ..software.activation import Activation, which
from ..software.damage import Damage, Health, Problem
from ..software.programs import broken
from ..software.registry import Runtimes, own_environment
from ..software.surroundings import problems
from ..spec.catalog import Runtime, RuntimeKind, with_defaults
from ..spec.errors import ForgeError
from ..spec.job import Config, JobRequest
from ..spec.units import show_seconds
from ..spec.verdict import EndedBy, Order, Verdict
from ..workers import launcher
from ..workers.launcher import Command
from .environments import build, chosen, open_runtimes
from .show import print_json

_PROBE_SECONDS = 60.0
_PROBES = {
    RuntimeKind.HOST: "true",
    RuntimeKind.VENV: "python -c 'import os, sys; sys.exit(sys.prefix != os.environ[\"VIRTUAL_ENV\"])'",
    RuntimeKind.CONDA: (
        'test -d "$CONDA_PREFIX/conda-meta" && if [ -e "$CONDA_PREFIX/bin/python" ]; then python -c ""; fi'
    ),
    RuntimeKind.CONTAINER: "true",
}
"""Commands that succeed only in a runtime of this kind."""


@dataclass(frozen=True, slots=True)
class RuntimeCheck:
    """The state of one runtime."""

    runtime: Runtime
    state: str  # "sound", "missing", "damaged", or "broken": a job cannot run in it
    health: Health | None
    problems: tuple[str, ...]


def run_check(options: argparse.Namespace) -> int:
    """Check the runtimes; return 1 if a job cannot use one of them."""
    runtimes = open_runtimes(options)
    wanted = chosen(runtimes.catalog, options.names)
    directory = os.path.abspath(options.directory)
    # The engine first: it forks, which is not safe once an installer has started threads.
    with (
        tempfile.TemporaryDirectory(prefix=".forge-check-", dir=directory) as apart,  # from the record of the workflow
        chdir(apart),
        closing(_engine(runtimes)) as engine,
    ):
        findings = [
            _check(runtimes, runtime, engine, repair=options.repair, named=runtime.name in options.names)
            for runtime in wanted
        ]
    store = runtimes.store.directory
    places = {"working directory": directory, "scratch": tempfile.gettempdir(), "environments": store}
    host = problems(places)
    if options.json:
        _print_json(findings, host)
    else:
        _print(findings, host, runtimes.cure)
    return 0 if all(f.state == "sound" for f in findings) and not host else 1


def _check(runtimes: Runtimes, runtime: Runtime, engine: Engine, *, repair: bool, named: bool) -> RuntimeCheck:
    """Check whether one runtime exists, is whole and works.

    Args:
        named: the user has named it: then the host's check reads Snakemake's own environment.
    """
    try:
        state = runtimes.state(runtime)
        if state.word == "missing" and not repair:
            return RuntimeCheck(runtime, "missing", None, ("it is not built: snakemake-forge runtimes build",))
        health, found = _read(runtimes, runtime, named=named)
        old = Damage.REPLACED  # deserves only a message, unless somebody asks for a repair
        unfit = state.manifest is None or any(problem.is_damage or problem.fault is old for problem in found)
        if repair and unfit and state.definition is not None:
            build(runtimes, [runtime], again=state.manifest is not None)
            health, found = _read(runtimes, runtime, named=named)
        said = tuple(map(str, found))
        if any(problem.is_damage for problem in found):
            return RuntimeCheck(runtime, "damaged", health, said)
        refusal = probe(runtimes, runtime, engine)
    except ForgeError as error:
        return RuntimeCheck(runtime, "broken", None, (str(error),))
    if refusal is not None:
        return RuntimeCheck(runtime, "broken", health, (*said, refusal))
    return RuntimeCheck(runtime, "sound", health, said)


def _read(runtimes: Runtimes, runtime: Runtime, *, named: bool) -> tuple[Health | None, tuple[Problem, ...]]:
    if runtime.kind is RuntimeKind.HOST and named:
        health = runtimes.look(own_environment())
        return health, health.damage
    manifest = runtimes.state(runtime).manifest
    if manifest is None:
        return None, ()
    health = runtimes.look(manifest, fully=True)
    programs = () if runtime.kind is RuntimeKind.CONTAINER else tuple(broken(manifest.prefix))
    return health, (*health.problems, *programs, *runtimes.replaced(runtime, fully=True))


# -- a job -------------------------------------------------------------------------------------------------------------


def probe(runtimes: Runtimes, runtime: Runtime, engine: Engine) -> str | None:
    """Run a job in a runtime, with the sandbox of a workflow's jobs.

    Returns:
        Why it failed; None if it succeeded.

    Raises:
        ForgeError: if the job could not start.
    """
    activation = runtimes.activation(runtime)
    verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
    text = _PROBES[runtime.kind]
    request = JobRequest(f"check_{runtime.name}", {}, 1, 1, {}, text)
    engine.submit(
        request, pickle.dumps(_command(text, activation)), text, "launcher", verdicts.put,
        is_command=True, runtime=runtime, identity=activation.identity, root=activation.root,
    )  # fmt: skip
    try:
        verdict = verdicts.get(timeout=_PROBE_SECONDS)
    except queue.Empty:
        engine.cancel_all(Order(EndedBy.FORGE, "it did not end"))
        return f"a job that does nothing did not end within {_PROBE_SECONDS:.0f} s"
    said = verdict.stderr_tail.strip().splitlines()
    return None if verdict.ok else f"a job in it failed: {verdict.reason}{': ' if said else ''}{' / '.join(said[-3:])}"


def _command(text: str, activation: Activation) -> Command:
    bash = shutil.which("bash") or "/bin/bash"
    if activation.root is not None:
        bash = which("bash", activation.variables["PATH"], activation.root) or bash
    removed = tuple(activation.removed)
    return Command(bash, (bash, "-c", text), os.getcwd(), dict(activation.variables), removed)


def _engine(runtimes: Runtimes) -> Engine:
    request = RunRequest(
        config=with_defaults(Config(), runtimes.catalog),
        prepare=lambda: None,
        execute=launcher.execute,
        render=lambda payload, _: pickle.loads(payload),  # its only payloads are commands
        exposed=(*runtimes.paths(), sys.prefix),
        declared=(),
        notice=lambda text: print(text, file=sys.stderr),
        runtimes=runtimes,
    )
    return Engine(request)


# -- what was found ----------------------------------------------------------------------------------------------------


def _print(findings: list[RuntimeCheck], host: list[str], cure: Callable[[Runtime, Sequence[Problem]], str]) -> None:
    for finding in findings:
        health = finding.health
        looked = f"{health.files} files, {show_seconds(health.seconds)}" if health is not None and health.files else "-"
        print(f"{finding.runtime.name:<16}  {finding.runtime.kind:<9}  {finding.state:<8}  {looked}")
        for problem in finding.problems:
            print(f"    {problem}")
        if finding.state == "damaged":
            print(f"    {cure(finding.runtime, finding.health.damage if finding.health else ())}")
    for problem in host:
        print(f"host: {problem}")


def _print_json(findings: list[RuntimeCheck], host: list[str]) -> None:
    record = {
        "runtimes": [
            {
                "runtime": finding.runtime.name,
                "kind": str(finding.runtime.kind),
                "state": finding.state,
                "files": finding.health.files if finding.health else None,
                "seconds": round(finding.health.seconds, 6) if finding.health else None,
                "problems": list(finding.problems),
            }
            for finding in findings
        ],
        "host": host,
    }
    print_json(record)
