"""Starts Snakemake and snakemake-forge as forks of a process that has imported both.

A start of Snakemake takes a second of a CPU, most of it for imports; 20 s in the emulated guest. A server of this session
therefore forks each ``python -m MODULE`` that a test starts. The fork differs in nothing else: it is the test's
child (CLONE_PARENT: clone(2)), with the streams, the directory, the environment, the signals and the command line that
``subprocess.Popen`` would give it, and runs the module as ``__main__``. This also works behind tests/ordinary.py: where
one of the modules would execute another, the other one runs in the same process.

All other commands are executed, and so are those whose environment has other variables of Python, or ``FORGE_TEST_COLD``,
which may be set for the whole session. The ``snakemake`` script is always executed.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import inspect
import io
import logging
import os
import pickle
import pkgutil
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import tests.ordinary  # noqa: F401 - chooses the number of its user here, for the server too

FORGE = "snakemake_executor_plugin_forge"
MODULES = ("snakemake", f"{FORGE}.cli.main", "tests.ordinary", "tests.slurm.machine")
_IMPORTED = ("snakemake.cli", "snakemake.profiles", "snakemake.report.html_reporter", "snakemake.storage", "requests", "smart_open", "yte",
             "tests.slurm.machine", f"{FORGE}.plugin.executor", f"{FORGE}.plugin.parsing", f"{FORGE}.run.engine")
_PYTHONS = ("PYTHON", "LANG", "LC_", "LD_", "OMP_", "OPENBLAS_", "SNAKEMAKE_")  # variables that are read at the start, or by an import
_SPECIAL = ("preexec_fn", "pass_fds", "shell", "executable", "startupinfo")
_shown: list[object] = []  # the memory from which the kernel reads command lines
_HEADER = struct.Struct("=Q")


class _Server:
    """The process that forks; it starts when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._variables = _of_python(os.environ)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-m", "tests.warm", str(theirs.fileno())], cwd=Path(__file__).parents[1],
                                             stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        atexit.register(self._end)

    def _end(self) -> None:
        if os.getpid() == self._owner:
            self._socket.close()
            self._process.wait()

    def can(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork would be this process's child, with the interpreter that these variables ask for."""
        return os.getpid() == self._owner and _of_python(environment) == self._variables

    def start(self, fds: Sequence[int], **request: object) -> int:
        """Start a process; return its id."""
        data = pickle.dumps(request)
        with self._lock:
            socket.send_fds(self._socket, [_HEADER.pack(len(data))], list(fds))
            self._socket.sendall(data)
            answer = self._socket.recv(_HEADER.size, socket.MSG_WAITALL)
        if len(answer) != _HEADER.size:
            raise ChildProcessError("the server of warm starts has ended")
        (pid,) = _HEADER.unpack(answer)
        return int(pid)


def install() -> None:
    """Have ``subprocess.Popen`` ask the server instead of executing one of the modules."""
    original = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    signature = inspect.signature(original)
    servers: list[_Server] = []
    lock = threading.RLock()  # Popen starts the server, too

    def execute_child(process: subprocess.Popen[Any], *arguments: Any, **options: Any) -> None:
        given = signature.bind(process, *arguments, **options).arguments
        environment = os.environ.copy() if given["env"] is None else given["env"]
        warm = _is_warm(given["args"]) and "FORGE_TEST_COLD" not in environment and not any(given[name] for name in _SPECIAL)
        with lock:
            if warm and not servers:
                servers.append(_Server())
        if not warm or not servers[0].can(environment):
            original(process, *arguments, **options)
            return
        streams = [number if fd == -1 else fd for number, fd in enumerate(given[name] for name in ("p2cread", "c2pwrite", "errwrite"))]
        process.pid = servers[0].start(
            streams, command=list(map(os.fspath, given["args"])), directory=os.fspath(given["cwd"] or os.getcwd()), environment=dict(environment),
            umask=given["umask"], session=given["start_new_session"], group=given["process_group"], mask=signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            ignored=[number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN])
        process._child_created = True  # type: ignore[attr-defined]
        process._close_pipe_fds(*(given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")))  # type: ignore[attr-defined]

    setattr(subprocess.Popen, "_execute_child", execute_child)  # noqa: B010 - mypy forbids the plain assignment


def _is_warm(command: object) -> bool:
    return isinstance(command, list) and command[:2] == [sys.executable, "-m"] and command[2] in MODULES


def _of_python(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_PYTHONS)}


# -- the server, and its forks -----------------------------------------------------------------------------------------


def _serve(connection: socket.socket) -> None:
    from snakemake_executor_plugin_forge.kernel import syscalls

    path = sys.path[:]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a fork would have none of the threads
    cli = importlib.import_module(f"{FORGE}.cli")
    plugins = [module.name for module in pkgutil.iter_modules() if module.name.startswith("snakemake_") and "_plugin_" in module.name]
    for name in (*_IMPORTED, *plugins, *(f"{cli.__name__}.{module.name}" for module in pkgutil.iter_modules(cli.__path__))):
        importlib.import_module(name)
    sys.path[:] = [*path, *(place for place in sys.path if place not in path)]
    assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for pytest
    os.chdir("/")
    gc.collect()
    gc.freeze()
    while True:
        header, fds, _, _ = socket.recv_fds(connection, _HEADER.size, 3)
        if not header:
            return
        size, data = _HEADER.unpack(header)[0], b""
        while len(data) < size:
            data += connection.recv(size - len(data))
        pid = syscalls.fork(syscalls.CLONE_PARENT)
        if pid == 0:
            _begin(fds, **pickle.loads(data))
        for fd in fds:
            os.close(fd)
        connection.sendall(_HEADER.pack(pid))


def _begin(streams: Sequence[int], *, command: list[str], directory: str, environment: dict[str, str], umask: int, session: bool,
           group: int | None, mask: set[int], ignored: list[int]) -> NoReturn:
    """Become like Popen's fork before its execve(2), and run the module."""
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.closerange(3, 1 << 16)
    os.chdir(directory)
    if umask >= 0:
        os.umask(umask)
    if session:
        os.setsid()
    if group is not None and group >= 0:
        os.setpgid(0, group)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ignored:
        if number != signal.SIGXFSZ:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    original = os.execvp

    def execvp(file: Any, words: Any) -> NoReturn:
        if not _is_warm(words):
            original(file, words)
        _close_on_exec()
        _run_module(words)

    setattr(os, "execvp", execvp)  # noqa: B010
    _run_module(command)


def _close_on_exec() -> None:
    """Do the work of execve(2): close descriptors and let others inspect the process (PR_SET_DUMPABLE of prctl(2))."""
    from snakemake_executor_plugin_forge.kernel import syscalls

    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if not os.get_inheritable(fd):
                os.close(fd)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)


def _run_module(command: list[str]) -> NoReturn:
    """Run the module as the interpreter does, from start to end."""
    sys.stdin = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = _writer(1, sys.stdout), _writer(2, sys.stderr)
    sys.argv, sys.orig_argv = [*command[2:]], [*command]
    _show(command)
    sys.path[0] = os.getcwd()
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    tempfile.tempdir = None
    # Values that these modules store at their import.
    sys.modules["snakemake.workflow"].Workflow._rundir = os.getcwd()
    setattr(sys.modules[f"{FORGE}.plugin.executor"], "_STARTED_IN", os.getcwd())  # noqa: B010
    _set_failpoints()
    warnings.filterwarnings("ignore", module="runpy")  # it warns that the module is already imported
    try:
        code: object = 0
        try:
            runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    logging.shutdown()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    if code == -signal.SIGINT:
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def _show(command: Sequence[str]) -> None:
    """Have /proc/PID/cmdline show this command: PR_SET_MM_MAP of prctl(2), with the numbers of proc(5)."""
    text = b"".join(os.fsencode(word) + b"\0" for word in command)
    _shown.append(kept := ctypes.create_string_buffer(text, len(text)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sbrk.restype = ctypes.c_void_p
    field = dict(enumerate(Path("/proc/self/stat").read_text().rpartition(")")[2].split(), 3))
    segments = [int(field[number]) for number in (26, 27, 45, 46, 47)] + [libc.sbrk(0), int(field[28])]
    arguments = [ctypes.addressof(kept), ctypes.addressof(kept) + len(text), int(field[50]), int(field[51]), 0]
    request = struct.pack("=12QIi", *segments, *arguments, 0, -1)
    if libc.prctl(35, ctypes.c_ulong(14), request, ctypes.c_ulong(len(request)), 0) != 0:  # PR_SET_MM, PR_SET_MM_MAP
        raise OSError(ctypes.get_errno(), "the command line cannot be shown")


def _writer(number: int, like: Any) -> io.TextIOWrapper:
    """Make a stream as create_stdio() in Python/pylifecycle.c does."""
    through = like.write_through
    binary: Any = open(number, "wb", 0 if through else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(binary, like.encoding, like.errors, line_buffering=not through and (number == 2 or os.isatty(number)), write_through=through)


def _set_failpoints() -> None:
    """Load the failpoints' hook, which a process usually does at an import."""
    from snakemake_executor_plugin_forge.kernel import failpoints

    nothing: Callable[..., object] = failpoints.reached
    if "FORGE_FAILPOINTS" in os.environ:
        hook = failpoints._load()
        for name, module in list(sys.modules.items()):
            if name.startswith(FORGE) and getattr(module, "reached", None) is nothing:
                setattr(module, "reached", hook)  # noqa: B010


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        _serve(inherited)
