"""A sandbox like that of an attempt, with a prompt or a command in it. shell.py says which attempt."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import secrets
import select
import shutil
import signal
import sys
import tempfile
import termios
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ..errors import SandboxError, UsageError
from ..model import DEFAULT_IO_WEIGHT, LaunchSpec, Priority
from ..record.jsonfile import load
from ..record.layout import SPEC
from ..record.reader import RUN
from ..record.sandbox import from_json
from ..recovery import PROMPT_PROCESS
from ..runtimes.activation import IN_IMAGE
from ..runtimes.container import KEPT
from ..sandbox import cgroup as cgroups
from ..sandbox.cgroup import RunCgroup
from ..sandbox.directories import remove_if_empty
from ..sandbox.enter import prepare
from ..sandbox.inside import Inside, Standby
from ..sandbox.privileges import Bounds
from ..sandbox.probe import host_memory_bytes, open_run_cgroup, try_namespaces
from ..sandbox.scratch import Slots, hold, remove_abandoned
from ..sandbox.soft import SoftRun
from ..sandbox.syscalls import set_process_name
from ..terminal import own_terminal

_NAME = re.compile(r"forge-shell-\d+-[0-9a-f]{4}")
_DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTSTP)


def open_prompt(directory: str, command: str | None) -> int:
    """Open it and wait for its end.

    Args:
        directory: the job directory of the attempt.
        command: for bash; None: a prompt.

    Returns:
        The exit code of the shell or command.

    Raises:
        UsageError: if what the sandbox was like is not on record.
        SandboxError: if one like it cannot be made here.

    """
    try:
        with open(f"{directory}/{SPEC}", encoding="utf-8") as file:
            described = json.load(file)
    except OSError as error:
        raise UsageError(
            f"What that sandbox was like is not on record any more: {directory}/{SPEC}: {error.strerror}"
        ) from error
    name = f"forge-shell-{os.getpid()}-{secrets.token_hex(2)}"
    base = f"{tempfile.gettempdir()}/{name}"
    variables, removed = _activation(directory, described)
    spec = from_json(described, name, base, {**variables, "FORGE_JOB_DIR": directory})
    if command is None and sys.stdin.isatty():
        print(f"The sandbox of {os.path.basename(directory)}. Its command: bash $FORGE_JOB_DIR/command.sh", flush=True)
    if spec.root is not None:
        spec = replace(spec, environment={**spec.environment, IN_IMAGE: "yes"})
        removed = [*removed, *(variable for variable in os.environ if variable not in KEPT)]
    for variable in removed:
        os.environ.pop(variable, None)
    return _enter(spec, ["bash", *(["-c", command] if command is not None else [])])


def _activation(directory: str, described: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """What the runtime of an attempt sets in its environment, and what it removes, as its run has recorded it."""
    run = load(os.path.join(os.path.dirname(directory), RUN)) or {}
    runtime = (run.get("runtimes") or {}).get(described.get("runtime_id")) or {}
    known = (runtime.get("activations") or {}).get(described["runtime"]) or {}
    return dict(known.get("variables") or {}), list(known.get("removed") or [])


def _enter(spec: LaunchSpec, arguments: list[str]) -> int:
    name = spec.name
    set_process_name(PROMPT_PROCESS)  # else a run that is started beside it takes its layers for those of a dead one
    os.chdir(spec.workdir)
    memory = host_memory_bytes()
    namespaces = try_namespaces(name, spec.workdir)
    hold(spec.scratch_base)  # not before: the trial makes and removes a directory of that name
    _clear_after_killed(os.path.dirname(spec.scratch_base))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    with ExitStack() as stack:
        stack.callback(remove_if_empty, spec.scratch_base)
        priority = Priority(io_weights=spec.limits.io_weight != DEFAULT_IO_WEIGHT)
        cgroup, _ = open_run_cgroup(name, memory, None, priority)
        group: RunCgroup = cgroup or SoftRun(memory, namespaced=namespaces.kind != "none")
        stack.callback(group.remove)
        job = group.create_job(name, spec.limits, spec.cpu_mode)
        stack.callback(job.remove)
        base = prepare(namespaces.kind, spec.gpus)
        standby = Standby(base, execute, Slots(base.private), as_init=True)
        stack.callback(standby.close)
        relay = stack.enter_context(own_terminal()) if sys.stdin.isatty() and sys.stdout.isatty() else _wait
        try:
            inside = standby.take(spec)
        except OSError as error:
            raise SandboxError(f"the sandbox could not be made: {error}") from error
        stack.callback(standby.clear_up, inside.scratch, inside.layers, spec.exposed)
        stack.callback(_end, inside)
        inside.scratch.begin(name)
        doors = job.open_doors(inside.started.holder)
        inside.stage(spec.files)
        limits = spec.limits
        bounds = Bounds(limits.disk_bytes, None, limits.nice)
        inside.order(pickle.dumps(arguments), spec.environment, bounds, spec.files.inputs, None, doors)
        for fd in doors:
            os.close(fd)
        relay(inside.result_fd)
        return _exit_code(inside)


def _clear_after_killed(directory: str) -> None:
    """Remove the scratch and cgroups of prompts that were killed: they belong to no run, so nothing else would."""
    gone = {os.path.basename(os.path.dirname(slot)) for slot in remove_abandoned(directory, _NAME)}
    for path in cgroups.find(gone) if gone else ():
        if not cgroups.member_pids(path):
            cgroups.remove_tree(path)


def _leave(number: int, frame: object) -> None:
    """What was made is removed on the way out."""
    del frame
    raise SystemExit(128 + number)


def execute(payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
    """In the sandbox, as the first process of its PID namespace: start the program, reap until it has ended."""
    del scratch
    arguments: list[str] = pickle.loads(payload)
    program = shutil.which(arguments[0], path=environment.get("PATH")) or arguments[0]
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.isatty(0):  # so that Ctrl-C and job control work
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            os.execve(program, arguments, {**os.environ, **environment})  # noqa: S606
        finally:
            os._exit(127)
    while (ended := os.wait())[0] != pid:
        pass
    code = os.waitstatus_to_exitcode(ended[1])
    return {"exit_code": code if code >= 0 else 128 - code}


def _wait(ended: int) -> None:
    select.select([ended], [], [])


def _exit_code(inside: Inside) -> int:
    text = b""
    while select.select([inside.result_fd], [], [], 5)[0]:
        if not (chunk := os.read(inside.result_fd, 65536)):
            break
        text += chunk
    result = json.loads(text or b'{"setup_error": "it was killed"}')
    if "setup_error" in result:
        raise SandboxError(f"the sandbox could not be entered: {result['setup_error']}")
    return int(result["exit_code"])


def _end(inside: Inside) -> None:
    inside.started.end(5.0)
    os.waitpid(inside.started.pid, 0)
    inside.close()
