"""A sandbox like the one of an attempt, with a prompt or a command in it. cli/shell.py chooses the attempt."""

from __future__ import annotations

import fcntl
import os
import pickle
import pty
import re
import secrets
import select
import shutil
import signal
import sys
import tempfile
import termios
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from ..kernel.inherited import to_null
from ..kernel.syscalls import set_process_name
from ..record.codec import from_json
from ..record.jsonfile import SPEC, load, read_object
from ..record.reader import RUN
from ..sandbox.base import prepare
from ..sandbox.cgroups import base as cgroups
from ..sandbox.cgroups.base import RunCgroup
from ..sandbox.cgroups.ladder import host_memory_bytes, open_run_cgroup
from ..sandbox.cgroups.polled import PolledRun
from ..sandbox.filesystem.directories import remove_if_empty
from ..sandbox.filesystem.kept import hold_home
from ..sandbox.filesystem.scratch import ScratchPool, hold, remove_abandoned
from ..sandbox.inside import Inside
from ..sandbox.privileges import Bounds
from ..sandbox.probe import try_namespaces
from ..sandbox.result import read_result
from ..sandbox.standby import Standby
from ..software.activation import IN_IMAGE
from ..software.container import KEPT
from ..spec.errors import SandboxError, UsageError
from ..spec.job import DEFAULT_IO_WEIGHT, LaunchSpec, Priority
from ..staging.recovery import PROMPT_PROCESS

_NAME = re.compile(r"forge-shell-\d+-[0-9a-f]{4}")
_DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTSTP)


def open_prompt(directory: str, command: str | None) -> int:
    """Open a prompt in such a sandbox and wait for its end.

    Args:
        command: for bash; None: a prompt.

    Returns:
        The exit code of the shell or command.

    Raises:
        UsageError: if the attempt's sandbox is not on record.
        SandboxError: if this host cannot make one like it.
    """
    try:
        described = read_object(f"{directory}/{SPEC}")
    except (OSError, ValueError) as error:
        raise UsageError(f"That sandbox is not on record any more: {directory}/{SPEC}: {error}") from error
    name = f"forge-shell-{os.getpid()}-{secrets.token_hex(2)}"
    base = f"{tempfile.gettempdir()}/{name}"
    try:
        variables, removed = _activation(directory, described)
        spec = from_json(described, name, base, {**variables, "FORGE_JOB_DIR": directory})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{directory}/{SPEC} is damaged: {type(error).__name__}: {error}") from error
    if command is None and sys.stdin.isatty():
        print(f"The sandbox of {os.path.basename(directory)}. Its command: bash $FORGE_JOB_DIR/command.sh", flush=True)
    if spec.root is not None:
        spec = replace(spec, environment={**spec.environment, IN_IMAGE: "yes"})
        removed = [*removed, *(variable for variable in os.environ if variable not in KEPT)]
    for variable in removed:
        os.environ.pop(variable, None)
    return _enter(spec, ["bash", *(["-c", command] if command is not None else [])])


def _activation(directory: str, described: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that the runtime of an attempt sets and removes, as its run has recorded them."""
    run = load(os.path.join(os.path.dirname(directory), RUN)) or {}
    runtime = (run.get("runtimes") or {}).get(described.get("runtime_id")) or {}
    known = (runtime.get("activations") or {}).get(described["runtime"]) or {}
    return dict(known.get("variables") or {}), list(known.get("removed") or [])


def _enter(spec: LaunchSpec, arguments: list[str]) -> int:
    name = spec.name
    set_process_name(PROMPT_PROCESS)  # else a run beside it would take its layers for those of a dead run
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
        group: RunCgroup = cgroup or PolledRun(memory, namespaced=namespaces.kind != "none")
        stack.callback(group.remove)
        job = group.create_job(name, spec.limits, spec.cpu_mode)
        stack.callback(job.remove)
        if spec.files.nested and os.geteuid() == 0:
            job.keep_settings()
        scratch, apart = os.path.dirname(spec.scratch_base), namespaces.layers_apart
        home, _ = hold_home(namespaces.kind, spec.workdir, scratch, apart=apart) if spec.files.home else (None, "")
        if home is not None:
            stack.callback(home.leave, wait=True)
        relay, console = stack.enter_context(own_terminal())
        kept = home.kept if home is not None else None
        base = prepare(namespaces.kind, spec.gpus, home=kept, console=console)
        standby = Standby(base, execute, ScratchPool(base.private), as_init=True)
        stack.callback(standby.close)
        try:
            inside = standby.take(spec)
        except OSError as error:
            raise SandboxError(f"the sandbox could not be made: {error}") from error
        stack.callback(standby.clear_up, inside.scratch, inside.layers, spec.exposed)
        stack.callback(inside.kill)
        inside.scratch.begin(name)
        cgroup_files = job.open_procs(inside.started.holder)
        inside.stage(spec.files)
        limits = spec.limits
        bounds = Bounds(limits.file_bytes, None, limits.nice)
        inside.order(pickle.dumps(arguments), spec.environment, bounds, spec.files.mounted_inputs, None, cgroup_files)
        for fd in cgroup_files:
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
    """Remove on the way out what was made."""
    del frame
    raise SystemExit(128 + number)


def execute(payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
    """Start the program and reap until it has ended: in the sandbox, as the first process of its PID namespace."""
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
    result = read_result(inside.read_result(5.0))
    if not result.ended or result.setup_error is not None:
        raise SandboxError(f"the sandbox could not be entered: {result.setup_error or 'it was killed'}")
    return result.exit_code or 0


_CHUNK = 65536
_HUNG_UP = 129  # 128 and SIGHUP, as shells say it


@contextmanager
def own_terminal() -> Iterator[tuple[Callable[[int], None], str | None]]:
    """Put a new terminal in place of each of the descriptors 0 to 2 that is one, for a process forked meanwhile.

    If only its output is shown, in a pipeline, it has no keyboard: another program may read that.

    Yields:
        A function that relays between both terminals until a descriptor is readable: the process has ended. And the
        path of the new terminal, if there is one.
    """
    replaced = {number: os.dup(number) for number in range(3) if os.isatty(number)}
    if not replaced:
        yield _wait, None
        return
    typed = {0, 1} <= replaced.keys()
    user, controller, terminal, path = _new_terminal(replaced, typed)
    before = termios.tcgetattr(user)

    def resize(*_: object) -> None:
        size = fcntl.ioctl(user, termios.TIOCGWINSZ, bytes(8))
        with suppress(OSError):
            fcntl.ioctl(controller, termios.TIOCSWINSZ, size)

    resize()
    old = signal.signal(signal.SIGWINCH, resize)
    try:
        if typed:
            tty.setraw(user, termios.TCSANOW)  # keep what was typed already
        else:  # the user's terminal makes of a new line what it needs
            raw = termios.tcgetattr(terminal)
            raw[1] &= ~termios.OPOST
            termios.tcsetattr(terminal, termios.TCSANOW, raw)
        os.close(terminal)
        yield lambda ended: _relay(user if typed else None, user, controller, ended), path
    finally:
        with suppress(termios.error):  # it is gone
            termios.tcsetattr(user, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, old)
        for number, fd in replaced.items():
            os.dup2(fd, number)
            os.close(fd)
        os.close(controller)


def _new_terminal(replaced: Mapping[int, int], typed: bool) -> tuple[int, int, int, str]:
    """Replace descriptors; return one of the user's terminal, the new one's two ends, and its path."""
    controller, terminal = pty.openpty()
    for number in replaced:
        os.dup2(terminal, number)
    if 0 in replaced and not typed:
        to_null(0)
    return next(iter(replaced.values())), controller, terminal, os.ttyname(terminal)


def _relay(user_in: int | None, user_out: int, controller: int, ended: int) -> None:
    sources = {controller: user_out} if user_in is None else {user_in: controller, controller: user_out}
    while True:
        ready = select.select([*sources, ended], [], [], 0.2 if ended not in sources else None)[0]
        for source in [fd for fd in ready if fd != ended]:
            try:
                data = os.read(source, _CHUNK)
            except OSError:  # EIO: nobody has the other end open
                data = b""
            if not data and source == user_in:  # the user's terminal is gone
                raise SystemExit(_HUNG_UP)
            if not data:
                sources.pop(source, None)
                continue
            with suppress(OSError):
                os.write(sources[source], data)
        if ended in ready and controller not in ready:  # all that it wrote has been read
            return
