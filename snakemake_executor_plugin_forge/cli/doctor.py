"""``snakemake-forge doctor``: what this host lets Forge enforce, and what would change it.

The code that starts a run probes the host, in a child process, and removes everything that it has made. Only the advice
is a guess: it names the setting that most likely causes a refusal.
"""

from __future__ import annotations

import argparse
import errno
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ..analysis.host_runs import HostRun, runs_of_host
from ..record.identity import user_name
from ..spec.host import POLLED, Host, isolation_line, missing_for
from ..spec.job import Config, Priority, Require
from . import host_runs
from .select import add_command
from .show import print_json, print_table

_EXAMPLES = """examples:
  snakemake-forge doctor                       what this host enforces, and what it does not
  snakemake-forge doctor --require limits      exit code 1 if the kernel does not enforce the limits of jobs
  snakemake-forge doctor --json | jq .advice   the advice, for programs
"""
_DROP_IN = "/etc/systemd/system/user@.service.d/delegate.conf"


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts that the advice depends on and that no probe finds."""

    uid: int
    user: str
    container: str | None  # "podman", "docker" or another engine
    in_slurm_job: bool
    has_systemd: bool  # booted with it: sd_booted(3)
    cgroup_versions: tuple[int, ...]  # mounted
    sysctls: dict[str, str]  # the members of _SYSCTLS that exist


@dataclass(frozen=True, slots=True)
class Capability:
    """One line of the table: a capability, how far the host enforces it, and by what."""

    what: str
    state: str  # "enforced", "soft" or "not enforced"
    how: str


@dataclass(frozen=True, slots=True)
class Fix:
    """A way to have the host enforce more."""

    why: str
    do: str  # commands or lines of configuration


_SYSCTLS = (
    "user.max_user_namespaces",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "doctor", _EXAMPLES)
    levels = [str(level) for level in Require]
    parser.add_argument(
        "--require",
        choices=levels,
        default="none",
        metavar="LEVEL",
        help=f"exit with 1 if this host enforces less: {', '.join(levels)}",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Probe the host and print; return 1 if it enforces less than ``--require``."""
    require = Require(options.require)
    host, facts = probe(os.path.realpath(options.directory)), read_facts()
    missing = missing_for(require, host)
    advice = list(advise(host, facts))
    record, runs = _record_problem(options.directory), runs_of_host()
    if options.json:
        report = {
            "schema": 1,
            "line": isolation_line(host, Config().network, Config().files),
            "require": str(require),
            "missing": missing,
            "enforced": [asdict(row) for row in table(host)],
            "rungs": [{"rung": rung.name, "refusal": rung.refusal} for rung in host.tried],
            "namespaces": {"kind": host.namespaces, "refusal": host.namespaces_note or None},
            "mechanisms": list(host.mechanisms),
            "record": record,
            "advice": [asdict(item) for item in advice],
            "runs": host_runs.as_json(runs),
        }
        print_json(report)
    else:
        _print(host, missing, advice, record, require)
        _print_runs(runs)
    return 1 if missing else 0


def probe(workdir: str) -> Host:
    """Probe the host as a run does: start its nursery, and end it."""
    from ..backends.local.backend import LocalBackend
    from ..sandbox.gpus import find
    from ..workers.nursery import NurserySetup

    config = Config()
    run_id = f"doctor-{os.getpid()}-{secrets.token_hex(2)}"
    nothing: dict[str, object] = {"exit_code": 0}
    gpus = find(config.gpus, os.environ)
    setup = NurserySetup(
        run_id, workdir, config.run_memory, config.run_pids, gpus, (), lambda: None, lambda *_: nothing, lambda *_: None
    )
    setup = replace(setup, priority=Priority(io_weights=True))
    backend = LocalBackend(setup, partial(print, file=sys.stderr))
    backend.close()
    return backend.host


def read_facts() -> Facts:
    """Read the facts of this host."""
    sysctls = {name: _first_line(f"/proc/sys/{name.replace('.', '/')}") for name in _SYSCTLS}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        kinds = {line.partition(" - ")[2].split()[0] for line in file}
    return Facts(
        uid=os.geteuid(),
        user=user_name(),
        container=_container(),
        in_slurm_job="SLURM_JOB_ID" in os.environ,
        has_systemd=os.path.isdir("/run/systemd/system"),
        cgroup_versions=tuple(n for n, kind in ((1, "cgroup"), (2, "cgroup2")) if kind in kinds),
        sysctls={name: value for name, value in sysctls.items() if value is not None},
    )


def _container() -> str | None:
    """The engine whose mark this container has: podman-run(1), Docker, and systemd's container interface."""
    if os.path.exists("/run/.containerenv"):
        return "podman"
    if os.path.exists("/.dockerenv"):
        return "docker"
    return os.environ.get("container") or ("apptainer" if "APPTAINER_CONTAINER" in os.environ else None)  # noqa: SIM112


def _first_line(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.readline().strip()
    except OSError:
        return None


def _record_problem(directory: str) -> str | None:
    path = os.path.abspath(directory)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return None if os.access(path, os.W_OK | os.X_OK) else f"{path} is not writable: a run there could keep no record"


# -- conclusions: pure -------------------------------------------------------------------------------------------------


def table(host: Host) -> list[Capability]:
    """List how far the host enforces each declaration of a rule, and each prohibition."""

    def row(what: str, enforced: bool, how: str, otherwise: str = "", state: str = "not enforced") -> Capability:
        return Capability(what, "enforced", how) if enforced else Capability(what, state, otherwise)

    kernel, inside, by = host.cgroup != POLLED, host.namespaces != "none", host.cgroup
    staged = inside and not host.layers_note
    counted = "RLIMIT_NPROC in its user namespace, or polled" if inside else "RLIMIT_NPROC of the user, and polled"
    no_namespace = f"no namespaces: {host.namespaces_note}"
    unstaged = host.layers_note or no_namespace
    where = "in the scratch, then copied" if host.layers_apart else "beside their places, then renamed"
    whole = "PID namespace: all of it, at once"
    return [
        row("memory", kernel, by, "polled; killed when beyond", "soft"),
        row("processes", kernel, by, counted, "soft"),
        row("CPU", "cpu" not in host.not_enforced, by, "needs a cgroup with the cpu controller"),
        row("all jobs together", kernel, by, "needs a cgroup"),
        row("I/O weight", not host.io_weight_note, f"on {', '.join(host.io_devices)}", host.io_weight_note),
        row("wall time", True, "Forge's clock"),
        row("size of a file", True, "RLIMIT_FSIZE"),
        row("end of all processes", inside, whole, "subreaper: all below the job's supervisor", "soft"),
        row("new privileges", True, "no_new_privs, capabilities dropped"),
        row("private /tmp, /dev, /proc", inside, "namespaces", no_namespace),
        row("network off", inside, "namespaces", no_namespace),
        row("inputs read-only", staged, "read-only mounts", unstaged),
        row("outputs all at once", staged, f"written to an overlay {where}", unstaged),
        row("no writes elsewhere", "landlock" in host.mechanisms, "landlock", "this kernel gives no landlock"),
        row("no odd system calls", "seccomp" in host.mechanisms, "seccomp", "this kernel gives no seccomp"),
    ]


def advise(host: Host, facts: Facts) -> Iterator[Fix]:
    """List ways to have the host enforce more, the most likely first."""
    if host.cgroup == POLLED:
        yield from _advise_cgroup(host, facts)
    elif "cpu" in host.not_enforced:
        yield _delegation("the cpu controller is not delegated to users")
    if host.namespaces == "none":
        yield from _advise_namespaces(facts)
    if host.cgroup != POLLED and host.io_weight_note and facts.container is None:  # no option of an engine helps
        yield _advise_io(host, facts)


def _advise_io(host: Host, facts: Facts) -> Fix:
    only = "only for --forge-io-weight"
    if not host.io_controller and facts.uid != 0:
        return _delegation(f"{only}: the io controller is not delegated to users")
    return Fix(
        f"{only}: no disk is divided by weight; as root, for a disk on which jobs wait for each other",
        "modprobe bfq\necho bfq > /sys/block/DISK/queue/scheduler",
    )


def _delegation(why: str) -> Fix:
    return Fix(
        f"{why}; as root, then log in again",
        f"mkdir -p {os.path.dirname(_DROP_IN)}\n"
        f"printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' > {_DROP_IN}\n"
        "systemctl daemon-reload",
    )


def _advise_cgroup(host: Host, facts: Facts) -> Iterator[Fix]:
    read_only = any(os.strerror(errno.EROFS) in (rung.refusal or "") for rung in host.tried)
    if facts.container is not None and (read_only or not facts.cgroup_versions):
        if 1 in facts.cgroup_versions:
            engine = "docker" if facts.container == "docker" else "podman"
            do = f"{engine} run --user 0 --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:rw …"
        elif facts.container == "docker":
            do = "docker run --privileged --cgroupns=private …"
        else:
            do = "podman run --cgroupns=private --security-opt unmask=/sys/fs/cgroup …"
        yield Fix("the container's cgroup file system is read-only or not its own", do)
        return
    if facts.in_slurm_job:
        yield Fix(
            "inside a Slurm job only the limits of that job hold, and they hold for all jobs of the run together",
            "in slurm.conf: TaskPlugin=task/cgroup    in cgroup.conf: ConstrainRAMSpace=yes ConstrainCores=yes",
        )
        return
    if facts.uid == 0 and read_only:
        yield Fix("the cgroup file system is read-only", "mount -o remount,rw /sys/fs/cgroup")
        return
    if 1 in facts.cgroup_versions:
        yield Fix(
            "this host uses cgroup v1, which cannot be given to users; with systemd, boot it with v2",
            "on the kernel's command line: systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
        )
    if facts.has_systemd:
        yield Fix(
            "your systemd user manager cannot be reached; log in with ssh or at a terminal, not with su",
            f"loginctl enable-linger {facts.user}\nexport XDG_RUNTIME_DIR=/run/user/{facts.uid}",
        )
        yield _delegation("controllers are not delegated to users")
    if facts.uid != 0:
        yield Fix("root needs no delegation", "sudo snakemake --executor forge …")


def _advise_namespaces(facts: Facts) -> Iterator[Fix]:
    known = facts.sysctls
    if known.get("user.max_user_namespaces") == "0":
        yield Fix("no user namespaces are allowed; as root", "sysctl -w user.max_user_namespaces=10000")
    if known.get("kernel.unprivileged_userns_clone") == "0":
        yield Fix(
            "only root may make user namespaces (Debian); as root", "sysctl -w kernel.unprivileged_userns_clone=1"
        )
    if known.get("kernel.apparmor_restrict_unprivileged_userns") == "1":
        yield Fix(
            "AppArmor takes all privileges from users' namespaces (Ubuntu); as root",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    if facts.container is not None:
        engine = "docker" if facts.container == "docker" else "podman"
        if facts.uid == 0:
            do = f"{engine} run --cap-add SYS_ADMIN --security-opt apparmor=unconfined …"
        else:
            masks = "systempaths=unconfined" if engine == "docker" else "unmask=ALL"
            options = ("seccomp=unconfined", "apparmor=unconfined", masks)
            do = f"{engine} run {' '.join(f'--security-opt {option}' for option in options)} …"
        yield Fix("the container engine forbids namespaces or mounts", do)


def _print(host: Host, missing: list[str], advice: list[Fix], record: str | None, require: Require) -> None:
    print(isolation_line(host, Config().network, Config().files))
    print()
    rows = table(host)
    for row in rows:
        print(f"{row.what.ljust(27)}{row.state.ljust(14)}{row.how}")
    print("\nplaces for a cgroup, in the order in which Forge tried them")
    for rung in host.tried:
        print(f"  {rung.name.ljust(25)}{f'taken: {host.cgroup_note}' if rung.refusal is None else rung.refusal}")
    if record is not None:
        print(f"\n{record}")
    if advice:
        print("\nwhat would change it")
    for item in advice:
        print(f"  {item.why}:")
        for line in item.do.splitlines():
            print(f"      {line}")
    if missing:
        print(f"\nbelow --require {require}: {'; '.join(missing)}")


def _print_runs(runs: list[HostRun]) -> None:
    """Print what the runs of this host use of their budgets."""
    if runs:
        print("\nruns on this host: usage of all jobs of each together, of its limits (live: top --all)")
        print_table(host_runs.HEADER, host_runs.as_rows(runs, {}), less=host_runs.LESS)
