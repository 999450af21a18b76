"""Files that a job opens, as fanotify reports them: on the real kernel, in mount namespaces of the tests."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import syscalls
from snakemake_executor_plugin_forge.sandbox import fanotify
from snakemake_executor_plugin_forge.sandbox.fanotify import Audit, Opened
from snakemake_executor_plugin_forge.spec.errors import AuditUnavailable
from tests.conftest import DEADLINE

from ..child import in_child

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="fanotify marks on mounts are for root")


NAMES = ("a", "b", "sub/c", "with space", "new\nline", "x (deleted)")


@dataclass
class Job:
    """A child in a mount namespace of its own: mounts 0 (an overlay on ``mnt``) and 1 (``low`` bound to ``bind``)."""

    pid: int
    link: socket.socket
    audit: Audit

    def go(self) -> None:
        """Let it do its work, and wait until that is done."""
        self.link.send(b"x")
        assert self.link.recv(1) == b"x"

    def end(self) -> None:
        """End it, and wait until its mount namespace is gone."""
        self.link.send(b"x")
        os.waitpid(self.pid, 0)
        deadline = time.monotonic() + DEADLINE
        while os.readlink(f"/proc/self/fd/{self.audit._mounts[0].fd}") != "/" and time.monotonic() < deadline:
            time.sleep(0.01)

    def seen(self) -> set[Opened]:
        """Read the events as soon as there are any."""
        select.select([self.audit], [], [], 5)
        return set(self.audit.read())


def _private(place: Path) -> list[int]:
    os.chdir(place)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
    syscalls.mount("o", "mnt", "overlay", 0, "lowerdir=low,upperdir=up,workdir=wk")
    syscalls.bind("low", "bind")
    return fanotify.descriptors(["mnt", "bind"])


@contextmanager
def job(place: Path, work: Callable[[], object], names: Sequence[str] = NAMES) -> Iterator[Job]:
    for name in ("low/sub", "up", "wk", "mnt", "bind"):
        (place / name).mkdir(parents=True)
    for name in names:
        (place / "low" / name).write_text("x")
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        signal.alarm(60)
        try:
            fds = _private(place)
            socket.send_fds(theirs, [b"x"], fds)
            theirs.recv(1)
            work()
            theirs.send(b"x")
            theirs.recv(1)
        finally:
            os._exit(0)
    theirs.close()
    message, fds, _, _ = socket.recv_fds(ours, 1, 4)
    assert message == b"x", "the child could not make its mounts"
    found = Audit(fds)
    try:
        yield Job(pid, ours, found)
    finally:
        found.close()
        ours.close()
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _open(*names: str) -> None:
    for name in names:
        with open(name, "rb"):
            pass


@as_root
@pytest.mark.parametrize("ended", [False, True], ids=["while_it_lives", "after_its_end"])
def test_what_the_job_opens_is_seen_and_nothing_else(tmp_path: Path, ended: bool) -> None:
    def work() -> None:
        _open("mnt/a", "bind/a", "bind/sub/c", "mnt/a", "mnt/with space", "mnt/new\nline", "mnt/x (deleted)")
        _open("low/b")  # the same files, but not through its mounts
        os.stat("mnt/b")
        os.listdir("mnt/sub")
        Path("mnt/made").write_text("x")
        with open("mnt/sub/c", "rb"):
            os.unlink("mnt/sub/c")

    with job(tmp_path, work) as one:
        one.go()
        _open(str(tmp_path / "low/b"))  # by this process
        if ended:
            one.end()
        assert one.seen() == {
            Opened(0, "a"), Opened(1, "a"), Opened(1, "sub/c"), Opened(0, "with space"), Opened(0, "new\nline"),
            Opened(0, "x (deleted)"), Opened(0, "made"), Opened(0, "sub/c"),
        }  # fmt: skip
        assert one.audit.read() == []
        assert one.audit.complete


@as_root
def test_programs_are_files_too(tmp_path: Path) -> None:
    def work() -> None:
        Path("mnt/tool").write_bytes(Path("/bin/true").read_bytes())
        os.chmod("mnt/tool", 0o755)
        os.spawnv(os.P_WAIT, "mnt/tool", ["tool"])

    with job(tmp_path, work) as one:
        one.go()
        assert Opened(0, "tool") in one.seen()


@as_root
def test_each_file_is_reported_once(tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(2000):
            _open("mnt/a", "mnt/b")

    with job(tmp_path, work) as one:
        one.link.send(b"x")
        found = []
        while not select.select([one.link], [], [], 0.01)[0]:
            found += one.audit.read()
        found += one.audit.read()
        assert sorted(found) == [Opened(0, "a"), Opened(0, "b")]


@as_root
def test_ten_thousand_files_in_a_queue(tmp_path: Path) -> None:
    """There are more files than a queue with a limit holds (16,384), and than descriptors may be open."""
    number = 20_000

    def work() -> None:
        for i in range(number):
            os.close(os.open(f"mnt/{i}", os.O_RDONLY))

    with job(tmp_path, work, [str(i) for i in range(number)]) as one:
        one.go()
        assert one.seen() == {Opened(0, str(i)) for i in range(number)}
        assert one.audit.complete


@as_root
def test_a_named_pipe_works_and_is_not_reported(tmp_path: Path) -> None:
    def work() -> None:
        os.mkfifo("bind/fifo")
        if os.fork() == 0:
            Path("bind/fifo").write_bytes(b"yyy")
            os._exit(0)
        text = Path("bind/fifo").read_bytes()
        os.wait()
        Path("mnt/read").write_bytes(text)

    (tmp_path / "p").mkdir()
    with job(tmp_path / "p", work) as one:
        one.go()
        names = {opened.path for opened in one.seen()}
        assert "read" in names
        assert (tmp_path / "p/up/read").read_bytes() == b"yyy"
        assert "fifo" not in names, "a named pipe that is reported has a reader for an instant"


def test_who_is_not_root_is_told_why() -> None:
    def unavailable() -> tuple[str, str]:
        try:
            Audit([])
        except AuditUnavailable as error:
            return fanotify.refusal(), str(error)
        return "", ""

    probed, said = in_child(unavailable, ordinary=True)
    assert probed == said
    assert "CAP_SYS_ADMIN" in said


@as_root
def test_root_of_this_host_can() -> None:
    assert fanotify.refusal() == ""


@as_root
def test_what_is_no_mount_of_anybody_is_refused() -> None:
    reader, writer = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AuditUnavailable):
        Audit([reader])
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(reader)
    os.close(writer)
