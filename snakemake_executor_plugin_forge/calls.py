"""A job as Snakemake's own call: encoded in Snakemake, carried out in the sandbox.

The arguments are those that Snakemake's local executor would give to its ``run_wrapper``, passed on untouched, so that
the meaning of a rule is Snakemake's and not ours. What every forked process has already (the workflow, its rules, its
line maps) travels as a name.
"""

from __future__ import annotations

import atexit
import inspect
import io
import logging
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from snakemake.exceptions import RuleException, format_exception_to_string
from snakemake.executors.local import run_wrapper
from snakemake.logging import logger
from snakemake.rules import Rule
from snakemake.shell import shell

from .backends.launcher import Command
from .errors import UsageError
from .measurements import own_peak_kb
from .runtimes.activation import Activation, which
from .sandbox.syscalls import set_process_name

_SIGNALLED = 128
_ACTIVATING = "Activating conda environment: "  # Snakemake says so also where it does not
_SHELL_MODULE: dict[str, Any] = shell.__new__.__globals__
"""Of Snakemake's shell.py. Not by import: the package binds ``snakemake.shell`` to the class."""


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, workflow: Any) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._workflow = workflow

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is Rule:  # isinstance asks an abstract base class, which takes longer than all the rest
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


_POSITIONS = {name: number for number, name in enumerate(inspect.signature(run_wrapper).parameters)}


def argument(arguments: tuple[Any, ...], name: str) -> Any:
    """One of the arguments of ``run_wrapper`` by its name, in whatever Snakemake."""
    return arguments[_POSITIONS[name]]


def in_environment(arguments: tuple[Any, ...], prefix: str | None) -> tuple[Any, ...]:
    """The same arguments with another conda environment, or with none.

    A script is run by the interpreter that is found there: see execute_script() of snakemake/script/__init__.py.
    """
    changed = list(arguments)
    changed[_POSITIONS["conda_env"]] = prefix
    base = _POSITIONS["conda_base_path"]
    changed[base] = arguments[base] or prefix  # without any conda it is None, from which no path can be made
    return tuple(changed)


def encode_call(
    arguments: tuple[Any, ...], workflow: Any, activation: Activation | None = None, *, measured: bool = False
) -> bytes:
    """The arguments of ``run_wrapper`` as bytes.

    Args:
        activation: of the job's runtime, if that is not just the host.
        measured: the job has a ``benchmark:``, for which it shall say what its processes have used.

    Raises:
        pickle.PicklingError, TypeError, AttributeError: for arguments that cannot be pickled (a lambda or an open
            file in ``params``, an object of a class that the Snakefile defines).

    """
    buffer = io.BytesIO()
    _Pickler(buffer, workflow).dump(("measured" if measured else "call", arguments, activation))
    return buffer.getvalue()


def encode_command(command: str, activation: Activation | None = None) -> bytes:
    """A shell command (an inner ``snakemake``) as bytes."""
    return pickle.dumps(("command", command, activation))


def encode_remote(call: bytes | None, command: str) -> bytes:
    """What :class:`.backends.renderer.Renderer` takes: an encoded call, or None; and a command to fall back on."""
    shell_path = shutil.which("bash") or "/bin/bash"
    inner = Command(shell_path, (shell_path, "-c", command), os.getcwd(), {}, ())
    return pickle.dumps((call, inner))


class Executor:
    """Carries out encoded calls; lives in the nursery, works in the job."""

    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow

    def prepare(self) -> None:
        """In the nursery, right after it was forked: cut what belongs to Snakemake's own process.

        Exit handlers and event loops are Snakemake's; log records of a job go to its stderr, because the files and
        sockets of Snakemake's log handlers are closed here.
        """
        atexit._clear()
        runners = getattr(self._workflow, "_async_runners", None)
        if runners:
            self._kept = list(runners.values())  # never closed here: they share sockets with Snakemake
            runners.clear()
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(_has_text)
        logger.addHandler(handler)

    def execute(self, payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
        """In the job: run it, and say how it went in plain values."""
        set_process_name("forge-job")
        signal.signal(signal.SIGTERM, _on_term)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.register_at_fork(after_in_child=_default_term)
        _rebind_streams()
        kind, content, activation = _Unpickler(io.BytesIO(payload), self._workflow).load()
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
        """In the nursery: let Snakemake work out a shell rule's command and environment, but not start it.

        Returns:
            None if that did not come down to one command; the job's process then does it all, errors included.
        """
        _, arguments, activation = _Unpickler(io.BytesIO(payload), self._workflow).load()
        _set_tmpdir(arguments, scratch)
        if _SHELL_MODULE.get("sp") is not subprocess:  # never start anything here, in whatever Snakemake
            return None
        _SHELL_MODULE["sp"] = _INTERCEPTOR
        try:
            run_wrapper(*arguments)
        except _Intercepted as start:
            command = _command(start.call)
            return _in_runtime(command, activation) if command and activation else command
        except BaseException:  # the same will happen in the job, where it can be reported
            return None
        finally:
            _SHELL_MODULE["sp"] = subprocess
        return None

    def _measured(self, arguments: tuple[Any, ...], scratch: str) -> dict[str, object]:
        """Run it, and add what the processes that Snakemake's benchmark means have used: getrusage(2).

        These are this process and its children for a rule with Python in it (``run:``), and only the children for all
        others. A child starts with the peak of memory of the process that forked it, so that only a higher one says
        anything of the child.
        """
        rule = arguments[0]
        before = resource.getrusage(resource.RUSAGE_SELF)
        result = self._call(arguments, scratch)
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        largest_child = own_peak_kb(children.ru_maxrss, started_by=own.ru_maxrss)
        used = [largest_child, children.ru_utime + children.ru_stime, children.ru_inblock, children.ru_oublock]
        if not (rule.shellcmd or rule.script or rule.wrapper or getattr(rule, "cwl", None)):
            used = [
                max(own.ru_maxrss, children.ru_maxrss),
                used[1] + own.ru_utime + own.ru_stime - before.ru_utime - before.ru_stime,
                used[2] + own.ru_inblock - before.ru_inblock,
                used[3] + own.ru_oublock - before.ru_oublock,
            ]
        return {**result, "measured": [*used, _private_bytes()]}

    def _call(self, arguments: tuple[Any, ...], scratch: str) -> dict[str, object]:
        _set_tmpdir(arguments, scratch)
        result: dict[str, object]
        try:
            run_wrapper(*arguments)
            result = _result(0)
        except (KeyboardInterrupt, SystemExit) as stop:
            result = _result(_exit_code(stop), f"{type(stop).__name__}: {stop}")
        except BaseException as error:
            result = _result(_failed_command(error), format_exception_to_string(error, self._workflow.linemaps))
            result["summary"] = _summary(error)
        return _leave(result)


class _Intercepted(SystemExit):
    """Carries a call of Popen out of run_wrapper, which passes a SystemExit on untouched."""

    def __init__(self, call: dict[str, Any]) -> None:
        super().__init__()
        self.call = call | {"cwd": os.getcwd()}


class _Interceptor:
    """Stands for the subprocess module in snakemake.shell: all is the real thing but Popen."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    @staticmethod
    def Popen(arguments: Any, **options: Any) -> None:  # noqa: N802
        raise _Intercepted({"arguments": arguments} | options)


_INTERCEPTOR = _Interceptor()


def _command(call: dict[str, Any]) -> Command | None:
    """A call of Popen as a command; None for one that means more than the words in it."""
    known = {"arguments", "bufsize", "shell", "stdout", "universal_newlines", "close_fds", "executable", "env", "cwd"}
    text, executable = call["arguments"], call.get("executable") or "/bin/sh"
    if call.keys() - known or not call["shell"] or call["stdout"] is subprocess.PIPE or not isinstance(text, str):
        return None
    if (script := re.match(r'"[^"]+" "([^"]*/\.snakemake/shell_tmp\.[^"/]+)/script\.sh"', text)) is not None:
        shutil.rmtree(script[1])  # a command of more than 64 KB, which is Snakemake's to remove after the job
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
    command = replace(command, changed=changed, removed=tuple(removed))
    if activation.root is None:
        return command
    shell_name = os.path.basename(command.executable)
    executable = which(shell_name, changed["PATH"], activation.root) or command.executable
    return replace(command, executable=executable, arguments=(executable, *command.arguments[1:]))


class _Active:
    """Stands for ``snakemake.deployment.conda.Conda`` in a job whose environment is active already."""

    def __init__(self, container_img: Any = None, prefix_path: Any = None, check: bool = False) -> None:
        pass

    def shellcmd(self, env_address: str, command: str) -> str:
        """The command as it is: nothing has to be activated in front of it."""
        del env_address
        return command


def _activate(activation: Activation, *, keep_python_path: bool) -> None:
    """In the job: its environment is that of its runtime; Snakemake need not activate nor ask for versions.

    Args:
        keep_python_path: an inner Snakemake may have been found with it.

    """
    python_path = os.environ.get("PYTHONPATH")
    activation.apply(os.environ)
    if keep_python_path and python_path is not None:
        os.environ["PYTHONPATH"] = python_path
    if activation.prefix is None:
        return
    from snakemake import script  # not above: of no use in Snakemake's own process before it has a script itself
    from snakemake.deployment import conda

    conda.Conda = _Active
    if "Conda" in _SHELL_MODULE:  # older Snakemake 9
        _SHELL_MODULE["Conda"] = _Active
    if activation.python is not None:
        version = activation.python
        script.PythonScript._get_python_version = lambda _: version


def _private_bytes() -> int:
    """Memory that only this process has, and that is charged to the job: proc_pid_smaps_rollup(5)."""
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_Dirty:"))
    except OSError:  # before Linux 4.14: then all of it, so that nothing is taken for the job's
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _set_tmpdir(arguments: tuple[Any, ...], scratch: str) -> None:
    """Of the rule's resources, which are among the arguments: shell() makes it the environment's TMPDIR."""
    for argument in arguments:
        if hasattr(argument, "_cores") and hasattr(argument, "tmpdir"):
            argument.tmpdir = scratch


def _has_text(record: logging.LogRecord) -> bool:
    text = str(record.msg)
    return record.levelno >= logging.INFO and text not in ("", "None") and not text.startswith(_ACTIVATING)


def _rebind_streams() -> None:
    """Python's streams to descriptors 0 to 2, whatever the program that called Snakemake had made of them.

    Snakemake's shell keeps the stdout of its import; None makes it inherit descriptor 1.
    """
    _SHELL_MODULE["STDOUT"] = None
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        errors = "backslashreplace" if number == 2 else None
        stream = open(number, mode, buffering=1, closefd=False, errors=errors)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def _on_term(number: int, frame: object) -> None:
    """TERM goes to every process of a job. One that waits for a command lets the command end it."""
    del frame
    try:
        waiting = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        waiting = False
    if not waiting:
        raise SystemExit(_SIGNALLED + number)


def _default_term() -> None:
    """Processes that a rule forks (multiprocessing ends its own with TERM) do not inherit this handler."""
    if signal.getsignal(signal.SIGTERM) is _on_term:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_code(stop: BaseException) -> int:
    code = getattr(stop, "code", None)
    return code if isinstance(code, int) else 1


def _failed_command(error: BaseException | None) -> int | None:
    """The exit status of the command that made a rule fail, somewhere in the chain of causes."""
    seen = 0
    while error is not None and seen < 50:
        if isinstance(error, subprocess.CalledProcessError):
            return error.returncode
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _summary(error: BaseException) -> str | None:
    """What went wrong in a rule's own Python code, in one line; None if it was a command that failed."""
    while isinstance(error, RuleException) and error.__context__ is not None:
        error = error.__context__
    if isinstance(error, subprocess.CalledProcessError):
        return None
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _result(code: int | None, error: str | None = None) -> dict[str, object]:
    if code is not None and code < 0:
        return {"exit_code": None, "signal": -code, "error": error}
    return {"exit_code": 1 if code is None else code, "signal": None, "error": error}


def _leave(result: dict[str, object]) -> dict[str, object]:
    """What an interpreter does at its end: threads that are no daemons, exit handlers, buffers."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util._exit_function()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        if result.get("exit_code") == 0:
            return _result(1, f"{type(error).__name__} at the end of the job: {error}")
    shell.cleanup()
    return result
