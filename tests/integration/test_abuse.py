"""Attacks beyond those of the issue trackers: each attack is a job, and one workflow has all of them."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import DEADLINE, Result, command, residue, run
from ..ordinary import given_to
from ..side_by_side import USERS

pytestmark = [pytest.mark.slow, pytest.mark.security]

ATTACKS = Path(__file__).with_name("abuse.py")
OUTSIDE = f"forge-abuse-{os.getpid()}"
V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
LINUX = tuple(map(int, os.uname().release.split(".")[:2]))
FILES = """
import os
rule all:
    input: "after"
rule made:
    output: "made"
    shell: "echo RIGHT > made"
rule shadow_output:
    input: "input.txt"
    output: "sh/input.txt"
    shadow: "minimal"
    shell: "rm -rf sh; ln -s ../../.. sh"
rule shadow_log:
    input: "made"
    output: "shadow_log.out"
    log: "lo/made"
    shadow: "minimal"
    shell: "rm -rf lo; ln -s ../../.. lo; exit 3"
rule strange:
    output: "strange\\n-rf $(touch pwned)"
    shell: "echo RIGHT > {output:q}"
"""
RULE = """
rule {name}:
    input: {input}
    output: "{name}.out"
    resources: {resources}
    shell: "{python} {script} {attack} {argument} > {{output}}"
"""
# Attack: the resources of its rule, and its outcome.
CASES = {
    "code_in_home": ("", "succeeded"),
    "system": ("", "succeeded"),
    "system_nested": ('forge_nested="on"', "succeeded"),
    "processes": ("", "succeeded"),
    "renames": ("", "succeeded"),
    "calls": ("", "succeeded"),
    "sockets": ("", "succeeded"),
    "loopback": ('forge_network="off"', "succeeded"),
    "daemons": ("", "succeeded"),
    "locks": ("", "succeeded"),
    "queues": ("", "succeeded"),
    "allocated": ("disk_mb=20", "disk"),
    "attributes": ("", "succeeded"),
    "names": ("", "succeeded"),
}
PYTHON = f"{sys.executable} -c"
# Deceptive outputs: a rule's command, and its outcome.
OUTPUTS = {
    "hard_link": ("ln input.txt {output}", "failed"),
    "hard_link_of_output": ("ln made {output} && chmod 600 {output}; exit 0", "failed"),
    "dangling": ("ln -s /nowhere {output}", "failed"),  # Snakemake does not find it, either
    "device": ("mknod {output} c 1 3", "failed"),
    "memory_device": ("mknod {output} c 1 1; cat {output} | head -c 1 > read; exit 0", "failed"),
    "socket": (f"{PYTHON} 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket.out\")'", "failed"),
    "dir_special": (f"mkdir {{output}}; mkfifo {{output}}/fifo; {PYTHON} 'import socket; socket.socket(socket.AF_UNIX).bind(\"dir_special.out/x\")'", "failed"),
    "dir_stamped": ("mkdir {output}; ln -s ../planted {output}/.snakemake_timestamp", "failed"),  # Snakemake touches this file
    "dir_capable": ("mkdir {output}; cp /bin/true {output}; chmod 6755 {output}/true", "succeeded"),
    "touch_nothing": ("ln -s nowhere {output}", "failed"),  # otherwise an assertion of Snakemake would end the run
    "attributed": (f"touch {{output}}; {PYTHON} 'import os; [os.setxattr(\"attributed.out\", \"user.\" + str(i), bytes(60000)) for i in range(200)]' || true", "succeeded"),
    "terabyte": ("truncate -s 1T {output}", "succeeded"),
    "terabyte_limited": ("truncate -s 1T {output}", "disk"),
    "far_times": ("echo > {output}; touch -d 2200-01-01 {output}", "succeeded"),
    "early_times": ("echo > {output}; touch -d 1970-01-01 {output}", "succeeded"),
    "capable": ("cp /bin/true {output}; chmod 6755 {output}; setcap cap_sys_admin+ep {output} 2>&- || true", "succeeded"),
}
# Rules above whose shadow directory has a link to the working directory: Snakemake moves the files behind it.
SHADOWED = {"shadow_output": ("sh/input.txt", "failed"), "shadow_log": ("shadow_log.out", "failed")}


def _snakefile(port: int) -> str:
    text, finished = FILES, ["input.txt", "made", "strange\n-rf $(touch pwned)"]
    for name, (resources, outcome) in CASES.items():
        attack, argument = name.removesuffix("_nested"), {"sockets": OUTSIDE, "loopback": str(port)}.get(name, "")
        text += RULE.format(name=name, input="'input.txt', 'made'", resources=resources or "mem_mb=500", python=sys.executable, script=ATTACKS, attack=attack, argument=argument)
        finished += [f"{name}.out"] if outcome == "succeeded" and name != "code_in_home" else []
    for name, (words, outcome) in OUTPUTS.items():
        resources = "disk_mb=20" if name.endswith("_limited") else "mem_mb=500"
        output = {"dir": f"directory('{name}.out')", "touch": f"touch('{name}.out')"}.get(name.partition("_")[0], f"'{name}.out'")
        text += f"rule {name}:\n    input: 'input.txt', 'made'\n    output: {output}\n    resources: {resources}\n    shell: {words!r}\n"
        finished += [f"{name}.out"] if outcome == "succeeded" else []
    names = ", ".join(repr(name) for name in finished)
    return text + f"rule after:\n    input: {names}\n    output: 'after'\n    shell: 'echo RIGHT > after'\n"


@dataclass(frozen=True)
class Attacked:
    """The result of one run of all attacks."""

    result: Result
    home: list[tuple[str, int, int]]  # the user's files before the run: names, times and sizes
    work: Path
    is_ordinary: bool

    def state(self) -> list[tuple[str, int, int]]:
        return _state(self.work.parent / "home")


def _state(directory: Path) -> list[tuple[str, int, int]]:
    found = ((path, path.lstat()) for path in directory.rglob("*"))
    own = (".cache", ".local")  # Snakemake's cache, and Forge's tokens
    return sorted((str(path), status.st_mtime_ns, status.st_size) for path, status in found if path.relative_to(directory).parts[0] not in own)


@pytest.fixture(scope="module", params=USERS)
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    base = tmp_path_factory.mktemp("abuse")
    work, home = base / "work", base / "home"
    for name in (".bashrc", ".profile", ".ssh/authorized_keys", ".gitconfig"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("the user's\n")
    work.mkdir()
    (work / "input.txt").write_text("RIGHT\n")
    with ExitStack() as stack:
        abstract, agent, port = (stack.enter_context(socket.socket(family)) for family in (socket.AF_UNIX, socket.AF_UNIX, socket.AF_INET))
        abstract.bind(f"\0{OUTSIDE}")
        (home / ".gnupg").mkdir()
        with chdir(home / ".gnupg"):  # the path may be too long for a socket
            agent.bind("S.gpg-agent")
        port.bind(("127.0.0.1", 0))
        for one in (abstract, agent, port):
            one.listen()
        (work / "Snakefile").write_text(_snakefile(port.getsockname()[1]))
        before = given_to(request.param, work, home)
        known = _state(home)
        result = run(work, "-j6", "-k", *[f"{name}.out" for name in (*CASES, *OUTPUTS)], *[path for path, _ in SHADOWED.values()], "after", before=before, env={"HOME": str(home)})
    yield Attacked(result, known, work, bool(before))
    shutil.rmtree(work, ignore_errors=True)  # a copy of the sparse terabyte would be large


@pytest.mark.parametrize("name", [*CASES, *OUTPUTS, *SHADOWED])
def test_an_attack(attacked: Attacked, name: str) -> None:
    _, outcome = {**CASES, **OUTPUTS, **SHADOWED}[name]
    if name == "code_in_home" and attacked.is_ordinary:  # this user's home is the working directory: see tests/ordinary.py
        outcome = "violation"
    attempt = attacked.result.attempt(name)
    said = Path(attempt["directory"], "stderr.log").read_text()
    assert attempt["outcome"] == outcome, (attempt["reason"], said)
    if name in CASES and outcome == "succeeded":
        worked = attacked.result.read(f"{name}.out").split("\n")
        if name.endswith("_nested") and os.geteuid() == 0:  # docs/explanation/security.md: in root's nested jobs nothing covers /proc
            worked = [line for line in worked if not line.startswith("/proc/sys") and (V2 or line != "core_pattern rewritten")]
        if name == "sockets" and LINUX < (6, 12):  # docs/explanation/isolation.md: Landlock covers abstract sockets since then
            worked = [line for line in worked if not line.startswith("'\\x00")]
        assert worked == [""]


def test_nothing_is_left_of_them(attacked: Attacked) -> None:
    """Home, inputs and outputs are unharmed, and no process, attribute or kernel object remains."""
    work = attacked.work
    assert attacked.state() == attacked.home
    assert (work / "input.txt").read_text() == (work / "made").read_text() == "RIGHT\n"
    assert (work / "made").stat().st_mode & 0o777 == 0o644
    assert (work / "input.txt").stat().st_nlink == 1
    assert attacked.result.read("after") == "RIGHT\n", attacked.result.output
    for path in (work / "marked", work / "marked/file"):
        assert [name for name in os.listxattr(path) if "overlay" in name] == []
    assert not (work / "pwned").exists()
    capable = work / "capable.out"
    assert not capable.stat().st_mode & 0o6000 and "security.capability" not in os.listxattr(capable)
    assert not (work / "dir_capable.out/true").stat().st_mode & 0o6000 and not (work / "planted").exists()
    assert (work / "terabyte.out").stat().st_blocks < 1000
    objects = subprocess.run(["ipcs", "-a"], check=True, capture_output=True, text=True).stdout
    assert "0x00001234" not in objects
    assert "forge-abuse" not in Path("/proc/keys").read_text()
    assert residue(work) == []


ASKS = r"""
rule all:
    input: "on.out", "off.out"
rule ask:
    output: "{network}.out"
    resources: forge_network=lambda wildcards: wildcards.network
    shell: "cd /run/nscd; {python} -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"socket\")' > $OLDPWD/{output} 2>&1 && echo asked > $OLDPWD/{output} || true"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts over /run")
def test_no_service_asks_the_network_for_a_job_without_one(workdir: Path) -> None:
    """A name service would carry a job's data to another machine, hidden in the names that the job asks for."""
    (workdir / "Snakefile").write_text(ASKS.replace("{python}", sys.executable))
    serve = "import os, signal, socket; os.chdir('/run/nscd'); s = socket.socket(socket.AF_UNIX); s.bind('socket'); s.listen(); print(1, flush=True); signal.pause()"
    script = f"""set -e
        mount -t tmpfs none /run; mkdir /run/nscd
        coproc {PYTHON} "{serve}"; read -u ${{COPROC[0]}} ready
        {shlex.join(command("forge", "-j2"))} || true
        kill $COPROC_PID
    """
    subprocess.run(["unshare", "-m", "--propagation", "private", "bash", "-c", script], cwd=workdir, check=True, stdin=subprocess.DEVNULL, timeout=DEADLINE)
    assert (workdir / "on.out").read_text() == "asked\n"
    assert "ConnectionRefusedError" in (workdir / "off.out").read_text()
