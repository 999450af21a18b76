"""A real Slurm cluster for this test run: munged, slurmctld and some slurmd from Debian packages, without systemd.

Directory, ports, node names and therefore cgroups have unique names, so that clusters of several test runs live side
by side on one machine.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.packages import install as apt_install
from tests.slurm import machine

PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
"""Program to the Debian package that has it."""

ACCOUNTING_PACKAGES = {"slurmdbd": "slurmdbd slurm-wlm-mysql-plugin", "mariadbd": "mariadb-server"}

_CGROUPS = Path("/sys/fs/cgroup")
_DEATH_SECONDS = 8.0
_PATIENCE_SECONDS = 900.0
"""Time limit of a daemon or a command of Slurm: only a hanging one takes longer."""
_SCRATCH = Path("/tmp")
_OF_NODE = re.compile(r"forge-(.+)@b\d+\.\d+\.\d+")
_OF_RUN = re.compile(rb"/runs/([^/\0]+)/slurm/")


def _of_dead_nodes() -> set[Path]:
    """List scratch directories of copies of jobs that no process holds, and their cgroups without a process.

    A killed node leaves both on this machine; in a real cluster no other host could remove them. Runs of other tests in
    their own clusters are not dead: processes name them in their command lines, even before a copy holds its scratch.
    """
    alive = {os.fsdecode(run) for path in Path("/proc").glob("[0-9]*/cmdline") for run in _OF_RUN.findall(_content(path))}
    scratch = {
        path
        for path in _SCRATCH.glob("forge-*@*")
        if not any(_name(slot.name.removeprefix("slot-")).startswith("forge-") for slot in path.glob("slot-*"))
    }
    cgroups = {Path(parent, name) for parent, names, _ in os.walk(_CGROUPS) for name in names if _OF_NODE.fullmatch(name)}
    dead = scratch | {path for path in cgroups if not any(_members(place) for place, _, _ in os.walk(path))}
    return {path for path in dead if (found := _OF_NODE.fullmatch(path.name)) is None or found[1] not in alive}


def _name(pid: str) -> str:
    try:
        return Path("/proc", pid, "comm").read_text().strip()
    except OSError:
        return ""


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _members(cgroup: str) -> str:
    try:
        return Path(cgroup, "cgroup.procs").read_text()
    except OSError:
        return ""


class ClusterError(Exception):
    """The cluster cannot run here; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """The settings of a cluster."""

    nodes: int = 2
    cpus: int = 8  # of each node; more than this machine has, so that jobs run side by side
    memory_mb: int = 4000  # of each node
    min_job_age_seconds: int = 60  # the controller remembers ended jobs for this time
    node_timeout_seconds: int = 60  # a node is down after this silence: a busy one must not be taken for dead
    accounting: bool = False  # slurmdbd with its own MariaDB
    bare: bool = False  # nodes whose kernel refuses new namespaces
    named: bool = False  # each node has its own host name


def install(programs: dict[str, str]) -> None:
    """Install the packages of programs that are missing.

    Args:
        programs: program to the packages that have it.

    Raises:
        ClusterError: if that fails.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [names for program, names in programs.items() if shutil.which(program, path=path) is None]
    packages = sorted({package for names in missing for package in names.split()})
    if os.geteuid() != 0:
        raise ClusterError("The Slurm cluster of the tests needs root: slurmd makes cgroups. Run the tests as root.")
    if not packages:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    advice = f"The Slurm cluster of the tests needs packages. As root, run: {shlex.join(command)}"
    if why := apt_install(packages):
        raise ClusterError(f"{advice}\nInstalling them failed: {why}")


class Cluster:
    """Daemons in foreground mode, as children of this process, so that their ids are known."""

    def __init__(self, shape: Shape | None = None) -> None:
        self.shape = shape or Shape()
        self.token = f"fs{secrets.token_hex(3)}"
        self.nodes = [f"{self.token}n{number + 1}" for number in range(self.shape.nodes)]
        self.root = Path(tempfile.mkdtemp(prefix=f"{self.token}-", dir="/tmp"))
        self.conf = self.root / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.environment["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        names = ["slurmctld", "slurmdbd", "sql", *self.nodes]
        self._before = _of_dead_nodes()
        self._ports = dict(zip(names, _free_ports(len(names)), strict=True))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.stop()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all daemons and wait for idle nodes, about two seconds.

        Raises:
            ClusterError: with the ends of the daemons' logs.
        """
        install(PACKAGES | (ACCOUNTING_PACKAGES if self.shape.accounting else {}))
        self._write()
        socket_path = self.root / "munge" / "socket"
        self._spawn("munged", ["munged", "--foreground", "--force", "--num-threads=2",
                               f"--key-file={self.root}/munge/key", f"--socket={socket_path}",
                               f"--pid-file={self.root}/munge/pid", f"--log-file={self.root}/log/munged.log",
                               f"--seed-file={self.root}/munge/seed"])
        self._await("munged answers", lambda: self.ok("munge", "-S", str(socket_path), "-n"))
        if self.shape.accounting:
            self._start_accounting()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.await_idle()

    def _start_accounting(self) -> None:
        """Start MariaDB and slurmdbd, and add this cluster."""
        sql, no_defaults = self.root / "sql", "--no-defaults"
        sql.mkdir()
        self.run("mariadb-install-db", no_defaults, "--auth-root-authentication-method=socket", "--skip-test-db",
                 "--user=root", f"--datadir={sql}/data", timeout=_PATIENCE_SECONDS)
        self._spawn("mariadbd", ["mariadbd", no_defaults, "--user=root", f"--datadir={sql}/data",
                                 f"--socket={sql}/sock", f"--pid-file={sql}/pid", "--bind-address=127.0.0.1",
                                 f"--port={self._ports['sql']}", "--skip-name-resolve",
                                 "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900"])
        client = ("mariadb", no_defaults, f"--socket={sql}/sock", "-e")
        self._await("MariaDB answers", lambda: self.ok(*client, "select 1"))
        self.run(*client, "create database slurm_acct; create user slurm@'127.0.0.1' identified by 'slurm'; "
                 "grant all on slurm_acct.* to slurm@'127.0.0.1'")
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        self._await("slurmdbd answers", lambda: self.ok("sacctmgr", "-n", "show", "cluster"))
        self.run("sacctmgr", "-i", "add", "cluster", self.token)

    def await_idle(self) -> None:
        """Wait until all nodes are idle."""
        self._await("all nodes are idle", lambda: self.states() == dict.fromkeys(self.nodes, "idle"))

    def stop(self) -> None:
        """Kill the daemons and their jobs' remaining processes, and remove every trace."""
        with suppress(subprocess.SubprocessError, OSError):
            if "slurmctld" in self._children:
                self.run("scancel", "--full", "--user=root", timeout=5)
                deadline = time.monotonic() + _DEATH_SECONDS
                while self.run("squeue", "-h", timeout=5).stdout.strip() and time.monotonic() < deadline:
                    time.sleep(0.1)
        for name in [*self.nodes, "slurmctld", "slurmdbd", "mariadbd", "munged"]:
            self.end(name, signal.SIGKILL)
        for node in self.nodes:
            self._clear_cgroups(node)
        for path in _of_dead_nodes() - self._before:
            if path.parent == _SCRATCH:
                shutil.rmtree(path, ignore_errors=True)
            else:
                for directory, _, _ in os.walk(path, topdown=False):
                    with suppress(OSError):
                        os.rmdir(directory)
        shutil.rmtree(self.root, ignore_errors=True)

    def _clear_cgroups(self, node: str) -> None:
        """Kill the processes that a killed slurmd left, found by its cgroups, and remove these."""
        tops = [top / f"slurm_{node}" for top in _CGROUPS.iterdir() if (top / f"slurm_{node}").is_dir()]
        deadline = time.monotonic() + _DEATH_SECONDS
        while tops and time.monotonic() < deadline:
            for top in tops:
                found = [Path(directory) for directory, _, _ in os.walk(top)]  # some are removed meanwhile
                for directory in found:
                    with suppress(OSError):
                        for pid in (directory / "cgroup.procs").read_text().split():
                            with suppress(ProcessLookupError):
                                os.kill(int(pid), signal.SIGKILL)
                for directory in reversed(found):
                    with suppress(OSError):
                        directory.rmdir()
            tops = [top for top in tops if top.is_dir()]
            time.sleep(0.05)

    # -- single daemons ----------------------------------------------------------------------------------------------

    def start_controller(self) -> None:
        """Start slurmctld and wait for its answer."""
        self._spawn("slurmctld", ["slurmctld", "-D"])
        self._await("slurmctld answers", lambda: self.ok("scontrol", "ping"))

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._spawn(node, ["slurmd", "-D", "-N", node], on=node)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon: a node, "slurmctld" or "munged"; no error if it is not there."""
        child = self._children.pop(name, None)
        if child is None:
            return
        child.send_signal(number)
        try:
            child.wait(_DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def pause(self, name: str) -> None:
        """Stop a daemon, as if its machine hung."""
        self._children[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a stopped daemon continue."""
        self._children[name].send_signal(signal.SIGCONT)

    # -- questions ---------------------------------------------------------------------------------------------------

    def run(self, *command: str, timeout: float = _PATIENCE_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm in this cluster."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False,
                              timeout=timeout)

    def ok(self, *command: str) -> bool:
        """Return whether a command succeeded."""
        with suppress(subprocess.TimeoutExpired):
            return self.run(*command).returncode == 0
        return False

    def states(self) -> dict[str, str]:
        """The state of each node."""
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %t").stdout.splitlines()
        return {node: state.strip("*") if state != "idle*" else state for node, state in map(str.split, lines)}

    def queue(self) -> list[str]:
        """Names and states of all jobs that slurmctld remembers."""
        return self.run("squeue", "-h", "-r", "-t", "all", "-o", "%j %T").stdout.splitlines()

    def controller_cpu_seconds(self) -> float:
        """User and system time of slurmctld since its start: proc_pid_stat(5)."""
        fields = Path(f"/proc/{self._children['slurmctld'].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def logs(self) -> str:
        """The ends of all logs, for messages."""
        texts = []
        for path in sorted((self.root / "log").iterdir()):
            lines = path.read_text(errors="replace").splitlines()[-12:]
            texts.append("\n  ".join([f"{path.name}:", *lines]))
        return "\n".join(texts)

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _spawn(self, name: str, command: list[str], on: str = "controller") -> None:
        """Start a daemon on the named machine."""
        program = shutil.which(command[0], path=self.environment["PATH"])
        if program is None:
            raise ClusterError(f"There is no {command[0]} in PATH.")
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            self._children[name] = subprocess.Popen(
                [*machine.prefix(self.root, on, bare=self.shape.bare and on in self.nodes, named=self.shape.named and on in self.nodes),
                 program, *command[1:]], env=self.environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True, cwd=Path(__file__).parents[2])

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            dead = [name for name, child in self._children.items() if child.poll() is not None]
            if dead or time.monotonic() > deadline:
                why = f"{', '.join(dead)} ended by itself" if dead else f"not within {_PATIENCE_SECONDS:g} s"
                raise ClusterError(f"The Slurm cluster of the tests: waited until {what}: {why}.\n{self.logs()}")
            time.sleep(0.05)

    def _write(self) -> None:
        self.root.chmod(0o755)
        for name in ("log", "state", "munge"):
            (self.root / name).mkdir()
        for node in self.nodes:
            (self.root / "spool" / node).mkdir(parents=True)
            (self.root / "tmp" / node).mkdir(parents=True)
            (self.root / "tmp" / node).chmod(0o1777)
        machine.write_users(self.root)
        key = self.root / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        self.conf.write_text(self._slurm_conf())
        dbd = self.root / "slurmdbd.conf"
        dbd.touch(mode=0o600)
        dbd.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self.root}/munge/socket\nDbdHost=localhost\nDbdAddr=127.0.0.1\n"
            f"DbdPort={self._ports['slurmdbd']}\nSlurmUser=root\nLogFile={self.root}/log/slurmdbd.log\n"
            f"PidFile={self.root}/slurmdbd.pid\nStorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\n"
            f"StoragePort={self._ports['sql']}\nStorageUser=slurm\nStoragePass=slurm\nStorageLoc=slurm_acct\n")
        # each machine has its own /var/tmp; by default the nodes would share /tmp
        (self.root / "mpi.conf").write_text("PMIxCliTmpDirBase=/var/tmp\n")
        (self.root / "cgroup.conf").write_text(
            "CgroupPlugin=autodetect\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\nConstrainRAMSpace=yes\n"
            "ConstrainSwapSpace=yes\nAllowedSwapSpace=0\nMinRAMSpace=4\nConstrainCores=no\nConstrainDevices=no\n"
            .replace("autodetect", "cgroup/v1" if (_CGROUPS / "memory").is_dir() else "cgroup/v2"))

    def _slurm_conf(self) -> str:
        shape, root, host = self.shape, self.root, socket.gethostname().split(".")[0]
        nodes = "\n".join(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self._ports[node]}"
                          for node in self.nodes)
        accounting = (f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
                      f"AccountingStoragePort={self._ports['slurmdbd']}\nAccountingStoragePass={root}/munge/socket\nAccountingStorageEnforce=associations,limits,qos"
                      if shape.accounting else "AccountingStorageType=accounting_storage/none")
        return f"""\
ClusterName={self.token}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={self._ports['slurmctld']}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire: a job that was requeued may start only that long after (default 120 s)
AuthInfo=socket={root}/munge/socket,cred_expire=6
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
# Slurm's PMIx plugin empties and makes a directory there for each step: not the same one for two nodes on one machine
TmpFS={root}/tmp/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
MailProg=/bin/true
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/cgroup
JobAcctGatherFrequency=task=1
{accounting}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
# believe the configured CPUs and memory, not this machine's
SlurmdParameters=config_overrides
# refuse at once what no node could ever run; by default it waits for ever
EnforcePartLimits=ALL
MpiDefault=none
ReturnToService=2
MaxArraySize=1001
MinJobAge={shape.min_job_age_seconds}
KillWait=5
UnkillableStepTimeout=30
SlurmctldTimeout=30
SlurmdTimeout={shape.node_timeout_seconds}
# a node that takes longer to answer a launch has its job ended or started once more, running or not (default 10 s)
MessageTimeout=20
JobRequeue=1
PrologFlags=Alloc
DefMemPerCPU=200
NodeName=DEFAULT CPUs={shape.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={shape.cpus} ThreadsPerCore=1 \
RealMemory={shape.memory_mb} State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=5 State=UP OverSubscribe=NO
"""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
