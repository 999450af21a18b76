"""Abuse and limits as data: one entry per case, all in one workflow and one start of Snakemake.

A case is a rule, the outcome that its attempt must have, and further checks. Numbers refer to the list of
faults that the sandbox must survive (docs/explanation/faults.md).
"""

from __future__ import annotations

import ctypes
import os
import socket
import textwrap
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .. import ordinary
from ..conftest import Result, residue, run, write_workflow

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_user]

# Rungs of the ladder (docs/explanation/hosts.md): a cgroup of root, of a user's systemd scope, or delegated by a batch
# system; soft limits; soft limits without namespaces. The guest has a phase for its ordinary user.
RUNGS = ["scope", "delegated"] if os.geteuid() != 0 else ["root"] if "FORGE_GUEST" in os.environ else ["root", "soft", "none"]
# Rungs in the guest of make test. "delegated" differs from "scope" only by the cgroup's maker; test_ladder_user.py tests that.
GUEST = {"root": [pytest.mark.v2], "scope": [pytest.mark.v2_user]}
# 160 MiB of memory that no process has mapped.
UNMAPPED = {
    "memfd": "import os, time\nfd = os.memfd_create('x')\nfor _ in range(160): os.write(fd, bytes(1 << 20)); time.sleep(0.005)",
    "sent_memfds": """
import os, socket, time
one, other = socket.socketpair()
for _ in range(40):
    fd = os.memfd_create("x")
    os.write(fd, bytes(4 << 20))
    socket.send_fds(one, [b"x"], [fd])
    os.close(fd)
    time.sleep(0.02)""",
    "segments": """
import ctypes, time
library = ctypes.CDLL(None)
library.shmat.restype = ctypes.c_void_p
for _ in range(40):
    place = library.shmat(library.shmget(0, 4 << 20, 0o1600), None, 0)
    ctypes.memset(place, 1, 4 << 20)
    library.shmdt(ctypes.c_void_p(place))
    time.sleep(0.02)""",
}
# Nameless files, each a fifth of the limit, that no descriptor of the first thread shows; and files below deep paths.
HIDING = """
import ctypes, mmap, os, socket, tempfile, threading, time
def make():
    file = tempfile.TemporaryFile(buffering=0)
    file.write(os.urandom(1 << 21))
    return file
def sent(kind, *files):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    for file in files:
        one.send(bytes(100))
        socket.send_fds(one, [b"x"], [file.fileno()])
        file.close()
    return other
"""
HIDDEN = {
    "in_a_stream": "keep = sent(socket.SOCK_STREAM, *(make() for _ in range(8)))",
    "in_datagrams": "keep = sent(socket.SOCK_DGRAM, *(make() for _ in range(8)))",
    "in_sent_sockets": "keep = sent(socket.SOCK_STREAM, *(sent(socket.SOCK_STREAM, make()) for _ in range(8)))",
    "mapped": """
keep = []
for _ in range(8):
    with make() as file:
        keep.append(mmap.mmap(file.fileno(), 1 << 21))
os.closerange(3, 1000)""",
    "in_a_thread": """
def hold():
    ctypes.CDLL(None).unshare(0x400)
    keep = [make() for _ in range(8)]
    time.sleep(600)
threading.Thread(target=hold).start()""",
    "in_the_layer": """
keep = [os.open(".", os.O_TMPFILE | os.O_RDWR) for _ in range(8)]
for fd in keep:
    os.write(fd, os.urandom(1 << 21))""",
}
DEEP = """
for _ in range(40):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
for number in range(8):
    with open(str(number), "wb") as file:
        file.write(os.urandom(1 << 21))"""
Check = Callable[[Result, dict[str, Any]], object]


@dataclass(frozen=True)
class Case:
    """One rule of the workflow; its output is NAME.out."""

    name: str
    outcome: str
    shell: str = ""
    directives: str = ""
    run: str = ""
    check: Check | None = None
    unless: Mapping[str, str] = field(default_factory=dict)  # rung to why the case cannot run there
    elsewhere: Mapping[str, tuple[str, Check | None]] = field(default_factory=dict)  # rung to its own outcome and check

    def expected(self, rung: str) -> tuple[str, Check | None]:
        """The outcome and check on this rung."""
        return self.elsewhere.get(rung, (self.outcome, self.check))

    def rule(self) -> str:
        """The rule in the Snakefile."""
        text = f"rule {self.name}:\n    output: '{self.name}.out'\n"
        text += textwrap.indent(self.directives, "    ") + ("\n" if self.directives else "")
        if self.run:
            return text + "    run:\n" + textwrap.indent(textwrap.dedent(self.run), "        ")
        return text + f"    shell: {self.shell!r}\n"


def _out(text: str) -> Check:
    def check(result: Result, attempt: dict[str, Any]) -> None:
        assert result.read(f"{attempt['rule']}.out").strip() == text

    return check


def _reason(*words: str) -> Check:
    def check(result: Result, attempt: dict[str, Any]) -> None:
        assert all(word in attempt["reason"] for word in words), attempt["reason"]

    return check


def _noted(*words: str) -> Check:
    def check(result: Result, attempt: dict[str, Any]) -> None:
        assert all(word in " ".join(attempt["notes"]) for word in words), attempt["notes"]

    return check


def _oom(result: Result, attempt: dict[str, Any]) -> None:
    limit = attempt["limits"]["memory_bytes"]
    assert limit == 100 * 1024**2
    assert 0.9 * limit <= attempt["usage"]["memory_peak_bytes"] <= limit
    assert not (result.directory / f"{attempt['rule']}.out").exists()
    assert "raise the rule's mem_mb" in attempt["reason"]


_OVER_A_SOFT_LIMIT: Mapping[str, tuple[str, Check | None]] = dict.fromkeys(
    ("soft", "none"), ("oom", _reason("more than 100.0 MiB", "polled", "raise the rule's mem_mb"))
)
_NO_MOUNTS = {"none": "without mounts, what is there is seen"}
_FOR_ROOT = dict.fromkeys(("scope", "delegated", "soft", "none"), "only root may")
_NO_CAPABILITIES: tuple[str, Check | None] = ("succeeded", _out("0000000000000000"))


def _page_cache(result: Result, attempt: dict[str, Any]) -> None:
    usage = attempt["usage"]
    assert usage["memory_peak_bytes"] <= attempt["limits"]["memory_bytes"]
    assert usage["memory_anon_peak_bytes"] < 50 * 1024**2  # without a cgroup, shared pages count once for each process


def _scratch_excess(result: Result, attempt: dict[str, Any]) -> None:
    evidence = attempt["evidence"]
    assert evidence["limit_bytes"] == 10 * 2**20 < evidence["total_bytes"]  # unit/test_disk_usage.py tests by how much
    assert evidence["largest"].startswith("/tmp/forge-")
    assert attempt["usage"]["scratch_peak_bytes"] >= evidence["total_bytes"]


def _one_cpu(result: Result, attempt: dict[str, Any]) -> None:
    # Eight spinners for 1.5 s: with one CPU they get about 1.5 s of CPU time, and not more.
    assert attempt["usage"]["cpu_seconds"] < 1.5 * attempt["seconds"], attempt["usage"]


def _no_cap(result: Result, attempt: dict[str, Any]) -> None:
    assert not attempt["usage"]["throttled_periods"]


TAG = uuid.uuid4().hex[:8]
HOLD = "python3 -c 'import time; x = bytearray({mb} * 2**20); time.sleep(600)'"  # holds the memory until Forge polls
ALLOCATE = "python3 -c 'x = bytearray({mb} * 2**20); print(len(x))'"
SPIN = 'for i in 1 2 3 4 5 6 7 8; do timeout {s} sh -c "while :; do :; done" & done; wait || true; touch {{output}}'

SERVICES = ("/run/docker.sock", f"/run/user/forge-test-{TAG}/bus", "/run/dbus/system_bus_socket", "/run/systemd/private")
TRY_SERVICES = (
    "import os, socket\n"
    "for path in os.environ['SERVICES'].split():\n"
    "    try:\n"
    "        socket.socket(socket.AF_UNIX).connect(path)\n"
    "    except OSError:\n"
    "        continue\n"
    "    print('reached', path)\n"
)
# add_key(2), keyctl(2): KEYCTL_SEARCH in KEY_SPEC_SESSION_KEYRING; 126 is ENOKEY.
ADD_KEY, KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
SEARCH_KEY = (
    "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
    f"print(libc.syscall({KEYCTL}, 10, -3, b'user', b'forge-test-{TAG}', 0), ctypes.get_errno())"
)
# ptrace(2): PTRACE_ATTACH; 1 is EPERM.
ATTACH = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); print(libc.ptrace(16, 1, 0, 0), ctypes.get_errno())"

# Emulation takes milliseconds for each file, and for each process of a bomb.
EMPTY_FILES, PIDS = (5_000, 150) if "FORGE_GUEST" in os.environ else (20_000, 400)

# The shell waits, without a fork, for %d more processes; SECONDS ends the wait if they never come.
BOMB = ("set -- /proc/[0-9]*; n=$(($# + %d)); f() {{ f | f & }}; f; until set -- /proc/[0-9]*; [ $# -ge $n -o $SECONDS -gt 600 ]; do :; done; "
        "sleep 1 & wait $!; exit 1")

CASES = [
    Case("fork_bomb", "pids", BOMB % (PIDS * 9 // 10), check=_reason("--forge-pids"),
         unless={"none": "it would take the processes of the other jobs too: alone in test_ladder.py"}),
    Case("daemon", "succeeded", "(setsid nohup sleep 1002 >/dev/null 2>&1 & until grep -qa ^sleep /proc/$!/cmdline; do sleep 0.1; done); "
         "echo ok > {output}",
         check=_noted("left 1 process", "sleep 1002")),  # 2
    Case("daemon_on_stdout", "succeeded", "(setsid sleep 1000 &); echo ok > {output}", check=_out("ok")),
    Case("kill_all", "failed", "sleep 1005 & kill -9 -1; wait $!; exit 1"),  # 7
    Case("kill_parent", "succeeded", "kill -9 $PPID; sleep 0.1; echo alive > {output}", check=_out("alive"),  # 8
         elsewhere={"none": ("failed", _reason("SIGKILL"))}),  # here it is only Forge's process for this job
    Case("kill_init", "succeeded", "kill -9 1; sleep 0.1; echo alive > {output}", check=_out("alive"),  # 9
         elsewhere={"none": ("failed", None)}),  # here it is the host's, out of the job's reach
    Case("new_privileges", "succeeded", "grep NoNewPrivs /proc/self/status | cut -f2 > {output}", check=_out("1")),  # 13
    Case("ptrace_init", "succeeded", f'python3 -c "{ATTACH}" > {{output}}', check=_out("-1 1")),  # 12
    Case("ptrace_holder", "succeeded", check=_out("-1 1"),
         run=f"import subprocess\nopen(output[0], 'wb').write(subprocess.check_output(['python3', '-c', {ATTACH!r}]))"),
    Case("holders_root", "succeeded", check=_out("no no"),
         run="import os\n"
             "def look(path):\n"
             "    try:\n"
             "        return len(os.listdir(path)) >= 0 and 'yes'\n"
             "    except OSError:\n"
             "        return 'no'\n"
             "with open(output[0], 'w') as file:\n"
             "    print(look('/proc/1/root'), look('/proc/1/cwd'), file=file)"),
    Case("bounding_set", "succeeded", "grep CapBnd /proc/self/status | cut -f2 > {output}", check=_out("00000000000000fb"),
         elsewhere=dict.fromkeys(("scope", "delegated", "soft"), _NO_CAPABILITIES),
         unless={"none": "it has no capability that could be dropped from it"}),
    Case("setuid_copy", "succeeded",  # 13: with the privilege it would be 65534
         "cp $(command -v id) $TMPDIR/id; chown 65534 $TMPDIR/id; chmod 4755 $TMPDIR/id; $TMPDIR/id -u > {output}",
         check=_out("0"), unless=_FOR_ROOT),
    Case("services", "succeeded", f'python3 -c "{TRY_SERVICES}" > {{output}}', check=_out(""), unless=_NO_MOUNTS),  # 14, 15, 83
    Case("systemd_run", "succeeded",
         "systemd-run --quiet --wait true 2>/dev/null && echo yes > {output} || echo no > {output}", check=_out("no")),
    Case("variables_of_services", "succeeded",
         "env | grep -cE '^(SSH_AUTH_SOCK|DBUS_SESSION_BUS_ADDRESS|XDG_RUNTIME_DIR)=' > {output} || true",
         check=_out("0")),
    Case("variables_of_services_in_python", "succeeded", check=_out("None None"),
         run="import os\nopen(output[0], 'w').write(f\"{os.environ.get('SSH_AUTH_SOCK')} {os.environ.get('TMUX')}\")"),
    Case("own_keyring", "succeeded", f'python3 -c "{SEARCH_KEY}" > {{output}}', check=_out("-1 38")),  # 92: ENOSYS
    Case("new_namespace_mount", "succeeded",
         "unshare -m true 2>/dev/null && echo mounted > {output} || echo refused > {output}", check=_out("refused")),
    Case("hidden_processes", "succeeded",  # 18
         "for i in 1 2 3 4 5 6 7 8; do (trap '' TERM HUP INT; setsid sleep 1001 &) ; done; sleep 0.3; echo ok > {output}",
         check=_noted("left 8 process")),
    Case("oom", "oom", HOLD.format(mb=300) + "; sleep 1; touch {output}", "resources: mem_mb=100", check=_oom,  # 19
         elsewhere=_OVER_A_SOFT_LIMIT),
    Case("oom_hidden", "oom", HOLD.format(mb=300) + " || true; sleep 0.2; touch {output}",  # 20
         "resources: mem_mb=100", check=_oom, elsewhere=_OVER_A_SOFT_LIMIT),
    Case("shm_hog", "oom", "dd if=/dev/zero of=/dev/shm/x bs=1M count=300; sleep 0.2; touch {output}",  # 21
         "resources: mem_mb=100", check=_reason("out of memory"), unless=_NO_MOUNTS),
    Case("page_cache", "succeeded", "dd if=/dev/zero of=$TMPDIR/x bs=1M count=400 2>&1; touch {output}",  # 24
         "resources: mem_mb=60", check=_page_cache),
    Case("short_peak", "succeeded", ALLOCATE.format(mb=150) + " > {output}", "resources: mem_mb=300",  # 25
         check=lambda _, attempt: attempt["usage"]["memory_peak_bytes"] > 150 * 2**20),
    Case("spinners_capped", "succeeded", SPIN.format(s=1.5), "threads: 1", check=_one_cpu),  # 33
    Case("spinners_free", "succeeded", SPIN.format(s=1), "resources: forge_cpu='off'", check=_no_cap),
    Case("renice", "succeeded", "nice -n -5 true 2> {output} && cat {output} | wc -l > {output}.n; touch {output}"),  # 36
    Case("double_fork_burner", "succeeded",  # 37
         "(setsid sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; touch $TMPDIR/done' &); until [ -e $TMPDIR/done ]; do sleep 0.1; done; touch {output}",
         check=lambda _, attempt: attempt["usage"]["cpu_seconds"] > 0.03),
    Case("no_command", "failed", "samtoolz sort in.bam > {output}", check=_reason("samtoolz", "not found")),
    Case("segfault", "failed", "kill -SEGV $$", check=_reason("SIGSEGV")),
    Case("exit_code", "failed", "touch {output}; exit 3", check=lambda r, a: a["exit_code"] == 3),
    Case("python_error", "failed", run="raise ValueError('not this one')", check=_reason("ValueError: not this one")),
    Case("python_abort", "failed", run="import os; os.abort()", check=_reason("SIGABRT")),
    Case("python_exit", "failed", run="import sys; sys.exit(4)", check=lambda r, a: a["exit_code"] == 4),
    Case("no_devices", "succeeded", "ls /dev | grep -cE '^(vd|sd|nvme|mem$|kmsg)' > {output} || true",
         check=_out("0"), unless=_NO_MOUNTS),
    Case("no_mknod", "succeeded", "mknod $TMPDIR/d b 254 0 2>/dev/null && echo made > {output} || echo no > {output}",
         check=_out("no")),
    Case("remount", "succeeded", "mount -o remount,rw /sys 2>/dev/null && echo yes > {output} || echo no > {output}",
         check=_out("no")),  # 85
    Case("umount_tmp", "succeeded", "umount /tmp 2>/dev/null && echo yes > {output} || echo no > {output}",
         check=_out("no")),  # 86
    Case("leave_cgroup", "succeeded",  # 87
         "find /sys/fs/cgroup -name cgroup.procs -maxdepth 3 | while read f; do "
         "if (echo 0 > $f) 2>/dev/null; then echo escaped; fi; done > {output}", check=_out("")),
    Case("sysctl", "succeeded",  # 90
         "(echo 1 > /proc/sys/vm/drop_caches) 2>/dev/null && echo yes > {output} || echo no > {output}",
         check=_out("no")),
    Case("sysrq", "succeeded", "(echo x > /proc/sysrq-trigger) 2>/dev/null && echo yes > {output} || echo no > {output}",
         check=_out("no")),
    Case("other_root", "succeeded", "ls /proc/1/root > /dev/null 2>&1 && echo yes > {output} || echo no > {output}",
         check=_out("no")),
    Case("core_dump", "failed", "python3 -c 'import os; os.abort()'",  # 95
         check=lambda result, _: not list(result.directory.glob("core*"))),
    Case("stdin_at_end", "succeeded", "cat > {output}", check=_out("")),  # 100
    Case("descriptors", "succeeded", "ls /proc/self/fd | wc -l > {output}", check=_out("4")),
    Case("own_tmp", "succeeded", "ls -A /tmp /var/tmp /dev/shm | grep -c " + TAG + " > {output} || true",
         check=_out("0"), unless=_NO_MOUNTS),
    Case("tmpdir_in_python", "succeeded", check=_out("True True"),
         run="import os\n"
             "with open(output[0], 'w') as file:\n"
             "    print(os.path.isdir(resources.tmpdir), os.environ['TMPDIR'] == resources.tmpdir, file=file)"),
    Case("scratch_is_tmpdir", "succeeded",
         "test $TMPDIR = $FORGE_SCRATCH -a $TMP = $TMPDIR -a $TEMP = $TMPDIR -a $TEMPDIR = {resources.tmpdir}; "
         "mkdir -p $TMPDIR/a/b; touch $TMPDIR/a/b/c; chmod 000 $TMPDIR/a; echo ok > {output}", check=_out("ok")),
    Case("own_ipc", "succeeded", "ipcmk -M 100 >/dev/null; ipcs -m | grep -c 0x > {output}", check=_out("1"),
         unless={"none": "it would be the host's, and stay"}),
    Case("no_network", "succeeded",  # 80
         "python3 -c 'import socket; print([n for _, n in socket.if_nameindex()])' > {output}",
         "resources: forge_network='off'", check=_out("['lo']"), unless={"none": "refused: test_ladder.py"}),
    Case("big_file", "disk", "head -c 30000000 /dev/zero > {output}", "resources: disk_mb=10",
         check=_reason("disk_mb")),
    Case("outputs_together", "disk", "for i in 1 2 3; do head -c 6M /dev/zero > {output}.$i; done; sleep 600; touch {output}",
         "resources: disk_mb=10", check=_reason("outputs_together.out."), unless={"none": "its outputs are not staged"}),
    Case("yes_to_a_file", "disk", "yes > $TMPDIR/f", "resources: disk_mb=10", check=_reason("/f)", "10.0 MiB")),  # 72
    Case("big_file_ignored", "disk", "python3 -c \"open('{output}', 'wb').write(bytes(30 * 2**20))\"",
         "resources: disk_mb=10", check=_reason("big_file_ignored.out", "disk_mb")),  # Python ignores SIGXFSZ
    Case("big_file_unnoticed", "disk",  # exit 0, and a file that ends within a record
         "python3 -c \"try: open('{output}', 'wb', 0).write(bytes(10 * 2**20 + 4096))\nexcept OSError: pass\"",
         "resources: disk_mb=10", check=_reason("big_file_unnoticed.out", "disk_mb")),
    Case("big_temporary_file", "disk",  # gone at the end
         'python3 -c "import os, tempfile\nwith tempfile.TemporaryFile() as f: f.truncate(10 * 2**20 + 2)"',
         "resources: disk_mb=10", check=_reason("disk_mb")),
    Case("full_to_the_byte", "succeeded", "head -c 10M /dev/zero > {output}", "resources: disk_mb=10"),
    Case("many_files", "disk", "i=0; while :; do i=$((i + 1)); head -c 1M /dev/zero > $TMPDIR/f$i; done",
         "resources: disk_mb=10", check=_scratch_excess),
    Case("many_empty_files", "succeeded",  # 73
         f"python3 -c \"for i in range({EMPTY_FILES}): open(f'/tmp/{{{{i}}}}', 'w').close()\"; touch {{output}}",
         "resources: disk_mb=100", unless={"none": "they would stay in the host's /tmp"}),
    Case("unlinked_files", "disk",  # 74
         'python3 -c "import os, tempfile, time; f = [tempfile.TemporaryFile() for i in range(4)]; '
         '[x.write(bytes(8 << 20)) or x.flush() for x in f]; time.sleep(600)"',
         "resources: disk_mb=10", check=_reason("deleted file that process python3 holds open")),
    *(Case(f"unmapped_{name}", "oom", f"python3 - <<'E'\n{code}\ntime.sleep(600)\nE\n", "resources: mem_mb=60",
           unless={"none": "it would be the host's, and stay"} if name == "segments" else {})
      for name, code in UNMAPPED.items()),
    *(Case(f"hidden_{name}", "disk", f"python3 - <<'E'\n{HIDING}{code}\ntime.sleep(600)\nE\n", "resources: disk_mb=10",
           check=_reason("deleted file that process python3 holds open")) for name, code in HIDDEN.items()),
    *(Case(f"deep_{name}", "disk", f"python3 - <<'E'\nimport os, time\n{before}\n{DEEP}\ntime.sleep(600)\nE\n",
           "resources: disk_mb=10", check=_reason("of 10.0 MiB (disk_mb)"), unless=unless) for name, before, unless in (
        ("in_tmp", "os.chdir(os.environ['TMPDIR'])", {}),
        ("in_the_layer", "", {"none": "it would be in the working directory"}))),
    Case("too_much_at_the_end", "disk", "head -c 8M /dev/zero | tee $TMPDIR/a > $TMPDIR/b; touch {output}",
         "resources: disk_mb=10", check=_reason("of 10.0 MiB (disk_mb)")),
    Case("forge_variables", "succeeded", "echo $FORGE_CPUS $FORGE_MEMORY_BYTES $FORGE_RUNTIME > {output}",
         "threads: 2\nresources: mem_mb=64", check=_out(f"2 {64 * 2**20} host")),
]

# Cases that depend on the version of cgroups, or on systemd: limits, counters, the end of all processes, services.
V2 = {"fork_bomb", "hidden_processes", "oom", "oom_hidden", "shm_hog", "page_cache", "short_peak", "spinners_capped",
      "spinners_free", "double_fork_burner", "leave_cgroup", "bounding_set", "services", "systemd_run"}


@pytest.fixture(scope="module", params=[pytest.param(rung, marks=GUEST.get(rung, [])) for rung in RUNGS])
def rung(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rung: str) -> Result:
    directory = tmp_path_factory.mktemp("containment").resolve()
    # Only the cases that this session runs: -k and the guest choose some.
    chosen = [item.callspec.params["case"] for item in request.session.items
              if isinstance(item, pytest.Function) and item.originalname == "test_case" and item.module is request.module]
    cases = [case for case in CASES if rung not in case.unless and case in chosen]
    outputs = [f"{case.name}.out" for case in cases]
    write_workflow(directory, f"rule all:\n    input: {outputs!r}\n" + "\n".join(case.rule() for case in cases))
    Path("/tmp", f"forge-test-{TAG}").touch()
    agent = str(directory / "agent")
    environment = {
        "SSH_AUTH_SOCK": agent, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={directory}/bus,guid=1",
        "XDG_RUNTIME_DIR": f"/run/user/forge-test-{TAG}", "TMUX": "/nowhere,1,0",
        "SERVICES": " ".join([*SERVICES, agent, f"{directory}/bus"]),
    }
    if any(case.name == "own_keyring" for case in cases):
        environment["FORGE_TEST_COLD"] = "1"  # executed, not forked: only so it has this process's session keyring
        _add_session_key()
    try:
        with ExitStack() as stack:
            for path in (*SERVICES, agent, f"{directory}/bus"):
                _listen(path, stack)
            if rung == "delegated":
                environment["SLURM_JOB_ID"] = "1"  # then Forge does not ask the user's manager
            if rung not in ("soft", "none"):
                return run(directory, "-j4", "--keep-going", "--forge-pids", str(PIDS), env=environment)
            for path in (agent, f"{directory}/bus"):
                os.chmod(path, 0o666)
            ordinary.hand_over(directory)
            before = ordinary.prefix(namespaces=rung == "soft")
            return run(directory, "-j4", "--keep-going", "--forge-pids", str(PIDS), env=environment, before=before)
    finally:
        Path("/tmp", f"forge-test-{TAG}").unlink()


def _listen(path: str, stack: ExitStack) -> None:
    """Listen at ``path``, unless the host has a service there or only root may create it."""
    if os.path.exists(path) or (os.geteuid() != 0 and path.startswith("/run/")):
        return
    for directory in reversed(Path(path).parents):
        if not directory.exists():
            directory.mkdir()
            stack.callback(directory.rmdir)
    service = stack.enter_context(socket.socket(socket.AF_UNIX))
    service.bind(path)
    stack.callback(os.unlink, path)
    service.listen(100)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)


def _add_session_key() -> None:
    """Add a key to this process's session keyring, which Snakemake inherits; check that it is found."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(KEYCTL, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
    assert libc.syscall(ADD_KEY, b"user", f"forge-test-{TAG}".encode(), b"secret", 6, -3) > 0
    assert libc.syscall(KEYCTL, 10, -3, b"user", f"forge-test-{TAG}".encode(), 0) > 0


@pytest.mark.parametrize(
    ("rung", "case"),
    [pytest.param(rung, case, id=f"{rung}-{case.name}", marks=GUEST.get(rung, []) if case.name in V2 else [])
     for rung in RUNGS for case in CASES if rung not in case.unless],
    indirect=["rung"],
    scope="module",
)
def test_case(result: Result, rung: str, case: Case) -> None:
    attempt = result.attempt(case.name)
    outcome, check = case.expected(rung)
    assert attempt["outcome"] == outcome, (attempt["reason"], attempt["notes"])
    if check is not None:
        assert check(result, attempt) is not False
    if outcome != "succeeded":
        assert attempt["reason"] in result.output
        assert not (result.directory / f"{case.name}.out").exists()


def test_nothing_is_left(result: Result) -> None:
    assert residue(result.directory) == []


def test_every_case_was_isolated(result: Result, rung: str) -> None:
    for attempt in result.attempts():
        assert attempt["isolation"]["limits"].startswith("soft" if rung in ("soft", "none") else "cgroup-v")
        namespaces = {"mount-ns", "pid-ns", "ipc-ns", "uts-ns"} & set(attempt["isolation"]["mechanisms"])
        assert len(namespaces) == (0 if rung == "none" else 4)


@pytest.mark.v2
def test_wall_time_ends_what_ignores_signals(workdir: Path) -> None:
    """Jobs that sleep forever (34), ignore TERM (4) or are stopped (5) end after the grace at the latest."""
    write_workflow(workdir, """
        rule all:
            input: "sleeper.out", "stubborn.out", "stopped.out"
        rule sleeper:
            output: "sleeper.out"
            shell: "sleep inf; touch {output}"
        rule stubborn:
            output: "stubborn.out"
            shell: "trap '' TERM INT HUP; sleep inf; sleep inf; touch {output}"
        rule stopped:
            output: "stopped.out"
            shell: "kill -STOP $$; touch {output}"
        """)
    result = run(workdir, "-j4", "-k", "--forge-wall", "1s", "--forge-grace", "1s")
    assert {a["rule"]: a["outcome"] for a in result.attempts()} == dict.fromkeys(
        ("sleeper", "stubborn", "stopped"), "timeout"
    )
    assert "timed out after 1.00 s (from --forge-wall); raise --forge-wall, or give rule" in result.output
    assert "or for all rules without runtime: raise --forge-wall" in result.output  # names the line to change
    assert residue(workdir) == []


def test_scratch_of_failed_jobs_is_kept_on_request(workdir: Path) -> None:
    """One supervisor runs all jobs: a kept directory does not disturb the next job."""
    write_workflow(workdir, """
        rule all:
            input: expand("{i}.out", i=range(4))
        rule a:
            output: "{i}.out"
            shell: "echo {wildcards.i} > $TMPDIR/left; [ {wildcards.i} = 3 ] && touch {output}"
        """)
    scratch = workdir / "scratch"
    scratch.mkdir()
    result = run(workdir, "-j1", "-k", "--forge-keep-scratch", "failed", "--forge-scratch-dir", str(scratch))
    assert sorted(a["outcome"] for a in result.attempts()) == ["failed"] * 3 + ["succeeded"]
    assert sorted(path.read_text() for path in scratch.rglob("left")) == ["0\n", "1\n", "2\n"]
    (base,) = scratch.iterdir()
    assert {path.name.split("-")[0] for path in base.iterdir()} == {"kept"}  # no slot is left
