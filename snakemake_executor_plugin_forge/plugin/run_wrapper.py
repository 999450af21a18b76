"""A job as Snakemake's own call: encoded in Snakemake's process, carried out in the sandbox.

Snakemake's local executor would give the same arguments to ``run_wrapper``, so that the meaning of a rule is
Snakemake's. Objects that every forked process has already (the workflow, its rules, its line maps) travel as names.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from snakemake.exceptions import RuleException, format_exception_to_string
from snakemake.executors.local import run_wrapper
from snakemake.logging import logger
from snakemake.rules import Rule
from snakemake.shell import shell

from ..kernel.inherited import take_stream
from ..kernel.syscalls import set_process_name
from ..software.activation import Activation, which
from ..spec.errors import UsageError
from ..supervisor.usage import own_peak_kb
from ..workers.launcher import Command
from . import parsing
from .interpreter_end import InterpreterEnd, disown
from .later_changes import NO_CHANGES, Changes
from .run_blocks import clear_caches, reseed
from .snakemake_internals import (
    SHELL_MODULE,
    argument,
    discard_script,
    leave_event_loops,
    popen_of,
    set_tmpdir,
    skip_activation,
)

_SIGNALLED = 128
_HALF_ERROR = 1 << 15  # characters of an exception's text, far below what sandbox/result.py takes
# Snakemake says the first also where it does not activate one; the second, the local executor's Snakemake keeps quiet.
_LEFT_OUT = ("Activating conda environment: ", "Changing to shadow directory: ")


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, workflow: Any) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._workflow = workflow
        self.has_others = False  # objects of classes that are neither Python's own nor Snakemake's

    def reducer_override(self, obj: Any) -> Any:
        module = str((obj if isinstance(obj, type) else type(obj)).__module__)
        self.has_others |= module != "builtins" and not module.startswith("snakemake")
        return NotImplemented

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is Rule:  # isinstance asks an abstract base class, which takes longer than everything else
            return ("rule", obj.name)
        if obj is self._workflow:
            return ("workflow", None)
        if obj is self._workflow.linemaps:
            return ("linemaps", None)
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, workflow: Any) -> None:
        super().__init__(file)
        self._workflow = workflow

    def persistent_load(self, pid: Any) -> Any:
        kind, name = pid
        match kind:
            case "rule":
                return self._workflow.get_rule(name)
            case "workflow":
                return self._workflow
            case "linemaps":
                return self._workflow.linemaps
        raise pickle.UnpicklingError(f"unknown reference {pid!r}")


def encode_call(
    arguments: tuple[Any, ...],
    workflow: Any,
    activation: Activation | None = None,
    *,
    measured: bool = False,
    changes: Changes = NO_CHANGES,
) -> bytes:
    """Encode the arguments of ``run_wrapper``.

    Args:
        activation: the activation of the job's runtime, if that is not just the host.
        measured: whether the job has a ``benchmark:``, which needs the usage of its processes.
        changes: what the nursery does not know.

    Raises:
        PicklingError: for arguments that cannot be pickled and read again: a lambda or an open file in ``params``, or
            an object of a class that the Snakefile defines, or whose own methods raise meanwhile.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, workflow)
    try:
        pickler.dump(("measured" if measured else "call", arguments, activation, changes))
        if pickler.has_others:
            _Unpickler(io.BytesIO(buffer.getbuffer()), workflow).load()
    except Exception as error:  # whatever methods of the objects raise
        raise pickle.PicklingError(f"{type(error).__name__}: {error}") from error
    return buffer.getvalue()


def encode_command(command: str, activation: Activation | None = None, changes: Changes = NO_CHANGES) -> bytes:
    """Encode a shell command, which starts an inner ``snakemake``."""
    return pickle.dumps(("command", command, activation, changes))


def encode_remote(call: bytes | None, command: str) -> bytes:
    """Encode a job for :class:`..workers.renderer.Renderer`: an encoded call, if it has one, and a second command."""
    shell_path = shutil.which("bash") or "/bin/bash"
    inner = Command(shell_path, (shell_path, "-c", command), os.getcwd(), {}, ())
    return pickle.dumps((call, inner))


class CallRunner:
    """Carries out encoded calls in the nursery and in the processes of jobs, which the nursery forks."""

    def __init__(self, workflow: Any, unseeded: tuple[str, ...] = ()) -> None:
        """Make a runner.

        Args:
            unseeded: modules whose random numbers each job seeds for itself, as a new process does.
        """
        self._workflow = workflow
        self._unseeded = unseeded
        self._collects = gc.isenabled()  # the nursery does not
        self._path = sys.path[:]  # the nursery has one of its own: see kernel/imports.py

    def prepare(self) -> None:
        """Part from Snakemake's own process, in the nursery right after its fork.

        Exit handlers and event loops are Snakemake's. Log records of a job go to its stderr, because the files and
        sockets of Snakemake's log handlers are closed here, and so are those of the program that called Snakemake.
        """
        parsing.leave_handlers()
        disown()
        clear_caches(self._workflow)
        self._event_loops = leave_event_loops(self._workflow)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(_has_text)
        logger.addHandler(handler)

    def execute(self, payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
        """Run a job in its own process, and return its result in plain values."""
        set_process_name("forge-job")
        sys.path[:] = self._path
        signal.signal(signal.SIGTERM, _on_term)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            return self._execute(payload, environment, scratch)
        except SystemExit as stop:  # it was ended before its code began
            return _stopped(stop)

    def _execute(self, payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
        os.register_at_fork(after_in_child=_default_term)
        _rebind_streams()
        kind, content, activation, changes = _Unpickler(io.BytesIO(payload), self._workflow).load()
        changes.apply(self._workflow.globals)
        if kind != "command" and argument(content, "job_rule").is_run:
            reseed(self._unseeded)
        if activation is not None and activation.root is not None:
            raise UsageError(
                f"the runtime {activation.runtime} is an image, in which only a single command of at most 64 KB "
                "can run; put a longer one into a script that the command calls"
            )
        if activation is not None:
            _activate(activation, keep_python_path=kind == "command")
        os.environ.update(environment)
        if kind == "command":
            return _result(subprocess.run(["bash", "-c", content], check=False).returncode)
        return self._measured(content, scratch) if kind == "measured" else self._call(content, scratch)

    def render(self, payload: bytes, scratch: str) -> Command | None:
        """Let Snakemake work out a shell rule's command and environment in the nursery, without starting it.

        Returns:
            None if the job is more than one command; the job's own process then does it all, errors included.
        """
        own, sys.path[:] = sys.path[:], self._path
        try:
            _, arguments, activation, changes = _Unpickler(io.BytesIO(payload), self._workflow).load()
            set_tmpdir(arguments, scratch)
            with changes.applied(self._workflow.globals) if changes != NO_CHANGES else nullcontext():
                call = popen_of(arguments)
        except BaseException:  # an object that cannot be unpickled here would end the nursery, and all jobs with it
            return None
        finally:
            sys.path[:] = own
        command = None if call is None else _command(call)
        return _in_runtime(command, activation) if command and activation else command

    def _measured(self, arguments: tuple[Any, ...], scratch: str) -> dict[str, object]:
        """Run a job, and add the usage of the processes that Snakemake's benchmark measures: getrusage(2).

        Snakemake measures this process and its children for a rule with Python in it (``run:``), and only the children
        for all others. A child starts with the memory peak of the process that forked it, so that only a higher peak
        is the child's own.
        """
        rule = argument(arguments, "job_rule")
        before = resource.getrusage(resource.RUSAGE_SELF)
        result = self._call(arguments, scratch)
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        largest_child = own_peak_kb(children.ru_maxrss, started_by=own.ru_maxrss)
        used = [largest_child, children.ru_utime + children.ru_stime, children.ru_inblock, children.ru_oublock]
        if not (rule.shellcmd or rule.script or rule.wrapper or rule.cwl):
            used = [
                max(own.ru_maxrss, children.ru_maxrss),
                used[1] + own.ru_utime + own.ru_stime - before.ru_utime - before.ru_stime,
                used[2] + own.ru_inblock - before.ru_inblock,
                used[3] + own.ru_oublock - before.ru_oublock,
            ]
        return {**result, "measured": [*used, _private_bytes()]}

    def _call(self, arguments: tuple[Any, ...], scratch: str) -> dict[str, object]:
        set_tmpdir(arguments, scratch)
        end = InterpreterEnd(argument(arguments, "job_rule").run_func.__globals__, collects=self._collects)
        result: dict[str, object]
        try:
            run_wrapper(*arguments)
            result = _result(0)
        except (KeyboardInterrupt, SystemExit) as stop:
            result = _stopped(stop)
        except BaseException as error:
            result = _result(_failed_command(error), format_exception_to_string(error, self._workflow.linemaps))
            result["summary"] = _summary(error)
        try:
            end.come()
        except BaseException as error:
            if result.get("exit_code") == 0:
                result = _result(1, f"{type(error).__name__} at the end of the job: {error}")
        shell.cleanup()
        return result


def _command(call: dict[str, Any]) -> Command | None:
    """A call of Popen as a command; None if it does more than start a command."""
    known = {"arguments", "bufsize", "shell", "stdout", "universal_newlines", "close_fds", "executable", "env", "cwd"}
    text, executable = call["arguments"], call.get("executable") or "/bin/sh"
    if call.keys() - known or not call["shell"] or call["stdout"] is subprocess.PIPE or not isinstance(text, str):
        return None
    if discard_script(text):  # Snakemake has to remove it after the job
        return None
    environment, own = call["env"], os.environ
    return Command(
        executable=executable,
        arguments=(executable, "-c", text),
        directory=call["cwd"],
        changed={name: value for name, value in environment.items() if own.get(name) != value},
        removed=tuple(own.keys() - environment.keys()),
    )


def _in_runtime(command: Command, activation: Activation) -> Command:
    """A command with the environment of its runtime, as if it had been activated in front of it."""
    removed = {*command.removed, *activation.removed} - activation.variables.keys()
    changed = {name: value for name, value in command.changed.items() if name not in activation.removed}
    changed |= activation.variables
    command = command._replace(changed=changed, removed=tuple(removed))
    if activation.root is None:
        return command
    shell_name = os.path.basename(command.executable)
    executable = which(shell_name, changed["PATH"], activation.root) or command.executable
    return command._replace(executable=executable, arguments=(executable, *command.arguments[1:]))


def _activate(activation: Activation, *, keep_python_path: bool) -> None:
    """Put the environment of its runtime into a job's process, so that Snakemake need not activate it.

    Args:
        keep_python_path: whether PYTHONPATH stays: an inner Snakemake may need it.
    """
    python_path = os.environ.get("PYTHONPATH")
    activation.apply(os.environ)
    if keep_python_path and python_path is not None:
        os.environ["PYTHONPATH"] = python_path
    if activation.prefix is not None:
        skip_activation(activation.python)


def _private_bytes() -> int:
    """The memory in bytes that this process shares with no other: proc_pid_smaps_rollup(5)."""
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_Dirty:"))
    except OSError:  # before Linux 4.14: all of it then, so that none of it counts as the job's
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _has_text(record: logging.LogRecord) -> bool:
    text = str(record.msg)
    return record.levelno >= logging.INFO and text not in ("", "None") and not text.startswith(_LEFT_OUT)


def _rebind_streams() -> None:
    """Bind Python's streams to descriptors 0 to 2, whatever the program that called Snakemake had made of them."""
    SHELL_MODULE["STDOUT"] = None  # which makes it inherit descriptor 1: it keeps the stdout of its import otherwise
    for number in range(3):
        take_stream(number)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def _on_term(number: int, frame: object) -> None:
    """End this process, unless it waits for a command: TERM goes to every process of a job, so that it will end."""
    del frame
    try:
        waiting = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        waiting = False
    if not waiting:
        raise SystemExit(_SIGNALLED + number)


def _default_term() -> None:
    """Take this handler from the processes that a rule forks: multiprocessing ends its own with TERM."""
    if signal.getsignal(signal.SIGTERM) is _on_term:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _failed_command(error: BaseException | None) -> int | None:
    """The exit status of the command that made a rule fail, somewhere in the chain of causes."""
    seen = 0
    while error is not None and seen < 50:
        if isinstance(error, subprocess.CalledProcessError):
            return error.returncode
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _summary(error: BaseException) -> str | None:
    """An error of a rule's own Python code in one line; None if a command failed."""
    while isinstance(error, RuleException) and error.__context__ is not None:
        error = error.__context__
    if isinstance(error, subprocess.CalledProcessError):
        return None
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _stopped(stop: KeyboardInterrupt | SystemExit) -> dict[str, object]:
    code = getattr(stop, "code", None)
    return _result(code if isinstance(code, int) else 1, f"{type(stop).__name__}: {stop}")


def _result(code: int | None, error: str | None = None) -> dict[str, object]:
    if error is not None and len(error) > 2 * _HALF_ERROR:
        error = f"{error[:_HALF_ERROR]}\n…\n{error[-_HALF_ERROR:]}"
    if code is not None and code < 0:
        return {"exit_code": None, "signal": -code, "error": error}
    return {"exit_code": 1 if code is None else code, "signal": None, "error": error}
