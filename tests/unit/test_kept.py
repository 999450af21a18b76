"""The process that holds the workflow's home: no message from a job changes anything."""

from __future__ import annotations

import os
import pickle
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from snakemake_executor_plugin_forge.kernel.descriptors import closing
from tests.conftest import DEADLINE, wait_until

_HOLD = """
import os, sys
from snakemake_executor_plugin_forge.sandbox.filesystem.kept import hold
place, home = sys.argv[1:]
held = hold([place], [home], "root" if os.geteuid() == 0 else "user")
print("held", flush=True)
sys.stdin.readline()
again = hold([place], [home], "root" if os.geteuid() == 0 else "user")
print("again", held.pid, again.pid, flush=True)
again.leave(wait=False)
held.leave(wait=True)
"""


class _Order:
    """An object whose pickle runs a program."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._path}",)


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(os.open(path.parent, os.O_PATH)) as directory:
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    connection.settimeout(DEADLINE)  # not before: where the queue is full, connect(2) then fails instead of waiting
    return connection


def _open_files_up_to_the_hard_limit(undo: ExitStack) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    undo.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))


def test_no_request_runs_anything_or_ends_it(tmp_path: Path) -> None:
    """A job with ``files: open`` reaches the holder's socket; a run of a thousand jobs at once has that many connections."""
    place, home = tmp_path / "state/home", tmp_path / "home"
    place.parent.mkdir()
    home.mkdir()
    with subprocess.Popen([sys.executable, "-c", _HOLD, place, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        (path,) = (path for path in place.rglob("*") if path.is_socket())
        requests = [pickle.dumps(_Order(tmp_path / "ran")), b"\xff", b"{}", b'"x"', b"[1, null]", b'["\\u0000"]', b'["nowhere"]',
                    b"[" * 60_000, b"[" + b",".join([b'"/x"'] * 5000) + b"]", b'["\\ud800"]']  # fmt: skip
        for request in requests:
            with _connected(path) as sender:
                sender.sendall(request)
                with suppress(ConnectionError):
                    assert sender.recv(1 << 16) != b".", request
        with ExitStack() as connections:
            _open_files_up_to_the_hard_limit(connections)
            for _ in range(1100):
                connections.enter_context(_connected(path))
            said = process.communicate("\n", timeout=DEADLINE)[0]
    first, second = map(int, said.split()[1:])
    assert first > 0 and second == 0, "the holder was ended, and another one started"
    assert not (tmp_path / "ran").exists()
    wait_until(lambda: not Path(f"/proc/{first}").exists())
