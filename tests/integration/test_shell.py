"""``snakemake-forge shell``: a command or a prompt in a job's sandbox."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from ..conftest import DEADLINE, FORGE, in_a_terminal, residue, run, write_workflow

CLI = [*FORGE, "shell"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shell").resolve()
    write_workflow(directory, """
        rule all:
            input: "a.out"
        rule call:
            input: "in.txt"
            output: "{s}.out"
            resources: mem_mb=100, forge_network="off"
            shell: "cat {input} > {output}"
        """)
    (directory / "in.txt").write_text("input\n")
    result = run(directory, "-j1")
    assert result.code == 0, result.output
    return directory


def _shell(place: Path, command: str) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen([*CLI, "call", "s=a", "--run", command], cwd=place, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        stdout, stderr = process.communicate(timeout=DEADLINE)
    assert not list(Path("/tmp").glob(f"forge-shell-{process.pid}-*"))
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def test_a_command_sees_what_the_job_saw(place: Path) -> None:
    done = _shell(place, """
        ls a.out 2>/dev/null || echo not there yet
        (echo x >> in.txt) 2>/dev/null || echo refused
        bash $FORGE_JOB_DIR/command.sh && cat a.out
        python3 -c 'import socket; print([n for _, n in socket.if_nameindex()])'
        python3 -c 'x = bytearray(300 * 2**20)' 2>/dev/null || echo killed
        touch left.txt /tmp/left; test -d $TMPDIR && ls -A $TMPDIR | wc -l
        exit 7""")
    assert done.stdout.splitlines() == ["not there yet", "refused", "input", "['lo']", "killed", "0"], done.stderr
    assert done.returncode == 7
    assert (place / "a.out").read_text() == (place / "in.txt").read_text() == "input\n"
    assert not (place / "left.txt").exists()
    assert residue(place) == []


def test_what_it_leaves_running_dies_with_it(place: Path) -> None:
    done = _shell(place, f"(setsid sleep 1021.{os.getpid()} >/dev/null 2>&1 &); echo done")
    assert done.stdout == "done\n"
    assert subprocess.run(["pgrep", "-f", f"sleep 1021.{os.getpid()}$"], capture_output=True, check=False).stdout == b""


def test_what_is_not_on_record_is_refused(place: Path) -> None:
    done = subprocess.run([*CLI, "cal"], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean call?" in done.stderr


def test_a_prompt_has_a_terminal_with_job_control(place: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.environ |= {"PS1": "prompt> ", "TERM": "dumb"}
        os.execv(CLI[0], [*CLI, "call"])
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + DEADLINE
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 4096)

    try:
        until(b"command.sh")
        os.write(terminal, b"echo $((40 + 2)) ready\n")
        until(b"42 ready")
        # The command itself reports its start, in the foreground: Ctrl-C would be too early while the shell is about to fork it.
        os.write(terminal, b"sh -c 'echo sleeps$((1 + 1)); exec sleep 1000'\n")
        until(b"sleeps2")
        os.write(terminal, b"\x03")  # Ctrl-C ends the command, not the shell
        os.write(terminal, b"echo $((50 + 1)) after\n")
        until(b"51 after")
        os.write(terminal, b"sh -c 'echo sleeps$((1 + 2)); exec sleep 1000'\n")
        until(b"sleeps3")
        os.write(terminal, b"\x1a")  # Ctrl-Z stops it, and the shell continues
        os.write(terminal, b"jobs; kill -9 %1; tty; ls /dev/pts\n")
        until(b"Stopped")
        until(b"/dev/console")
        until(b"ptmx")
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 41, 133, 0, 0))
        os.write(terminal, b"until [ \"$(stty size)\" = '41 133' ]; do sleep 0.1; done; echo $((60 + 1)) columns\n")
        until(b"61 columns")
        os.write(terminal, b"exit 5\n")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)  # ends the shell, also after a failure
    assert os.waitstatus_to_exitcode(status) == 5
    assert residue(place) == []


@pytest.mark.parametrize("redirect", ["", "| cat", "2>/dev/null | cat", "</dev/null", "2>err.txt"])
def test_a_command_does_not_have_the_terminal_of_its_user(place: Path, redirect: str) -> None:
    """With any redirection, the command is in another session, and its streams are another terminal or none."""
    command = 'echo session $(cut -d" " -f6 /proc/$$/stat); for n in 0 1 2; do readlink /proc/$$/fd/$n; done | sort -u'
    code, seen = in_a_terminal(["/bin/bash", "-c", f"tty <&2; {' '.join(CLI)} call s=a --run '{command}' {redirect}"], place)
    assert code == 0, seen
    users, session, *streams = seen.split()
    assert users.startswith("/dev/pts/")
    assert session == "session"
    assert streams[0] != "0", "its session leader is a process in the sandbox"
    assert users not in streams, seen


def test_runs_and_resume_go_on_beside_it(place: Path) -> None:
    """A run and resume neither remove the shell's files nor wait for its end."""
    words = ["call", "s=a", "--run", "echo mine > new.txt; echo ready; read line; cat new.txt && touch other.txt && ls"]
    shell = subprocess.Popen([*CLI, *words], cwd=place, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert shell.stdin is not None
    assert shell.stdout is not None
    assert shell.stdout.readline() == "ready\n"
    again = run(place, "-j1", "--forcerun", "call")
    assert again.code == 0, again.output
    resumed = subprocess.run([*CLI[:-1], "resume"], cwd=place, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    rest, _ = shell.communicate("go on\n")
    assert rest.split()[0] == "mine"
    assert {"in.txt", "new.txt", "other.txt"} <= set(rest.split()[1:])
    assert shell.returncode == 0
    assert not (place / "new.txt").exists()
    assert residue(place) == []


def test_the_next_one_clears_up_after_one_that_was_killed(place: Path) -> None:
    def left(pid: int) -> list[str]:
        found = [str(path) for path in Path("/tmp").glob(f"forge-shell-{pid}-*")]
        for parent, directories, _ in os.walk("/sys/fs/cgroup"):
            found += [f"{parent}/{name}" for name in directories if name.startswith(f"forge-shell-{pid}-")]
        return found

    shells = [subprocess.Popen([*CLI, "call", "s=a", "--run", "echo x > $TMPDIR/big; echo ready; read line"], cwd=place,
                               text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for shell in shells:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "ready\n"
    killed, living = shells
    killed.kill()
    killed.communicate()
    for shell in shells:
        (base,) = Path("/tmp").glob(f"forge-shell-{shell.pid}-*")
        os.utime(base, (time.time() - 100, time.time() - 100))  # directories younger than a minute are spared
    assert left(killed.pid)
    there = left(living.pid)
    try:
        assert _shell(place, "echo $((50 + 3))").stdout == "53\n"
        assert left(killed.pid) == []
        assert left(living.pid) == there
    finally:
        living.communicate("go on\n")
    assert living.returncode == 0
    assert left(living.pid) == []
    assert run(place, "-j1", "--forcerun", "call").code == 0  # a run removes the layers
    assert residue(place) == []


def test_a_closed_terminal_ends_it(place: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execv(CLI[0], [*CLI, "call"])
    seen = b""
    while b"command.sh" not in seen:
        seen += os.read(terminal, 4096)
    os.write(terminal, b"sleep 1000 & echo $((70 + 1))\n")
    while b"71" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert residue(place) == []
    assert not [name for name in os.listdir("/tmp") if name.startswith(f"forge-shell-{pid}-")]
