"""``snakemake-forge doctor``: what this host lets Forge enforce, and what would change it.

Nothing is deduced: the host is probed by the very code that a run starts with, in a child process, and what that made
is removed. Only the advice is: it goes from what was refused to the setting that most likely is the cause.
"""

from __future__ import annotations

import argparse
import errno
import os
import pwd
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..model import Config, Host, Priority, Require
from ..plan import isolation_line, missing_for
from ..sandbox.weights import NO_CONTROLLER
from .select import add_command
from .show import print_json

_EXAMPLES = """examples:
  snakemake-forge doctor                       what holds on this host, and what does not
  snakemake-forge doctor --require limits      exit code 1 if the kernel does not enforce the limits of jobs
  snakemake-forge doctor --json | jq .advice   the same for programs
"""
_DROP_IN = "/etc/systemd/system/user@.service.d/delegate.conf"


@dataclass(frozen=True, slots=True)
class Facts:
    """What advice depends on and no probe tells."""

    uid: int
    user: str
    container: str | None  # "podman", "docker" or another one
    in_slurm_job: bool
    has_systemd: bool  # booted with it: sd_booted(3)
    cgroup_versions: tuple[int, ...]  # mounted
    sysctls: dict[str, str]  # those of _SYSCTLS that exist


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what is enforced, how far, and by what."""

    what: str
    state: str  # "enforced", "soft" or "not enforced"
    how: str


@dataclass(frozen=True, slots=True)
class Advice:
    """A way to get more."""

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
        "--require", choices=levels, default="none", metavar="LEVEL", help=f"exit code 1 below it: {', '.join(levels)}"
    )
    parser.add_argument("--json", action="store_true", help="an object (docs/reference/doctor.md has the fields)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Probe, print; exit code 1 if the host is below ``--require``."""
    require = Require(options.require)
    host, facts = probe(os.path.realpath(options.directory)), read_facts()
    missing = missing_for(require, host)
    advice = list(advise(host, facts))
    record = _record_problem(options.directory)
    if options.json:
        report = {
            "schema": 1,
            "line": isolation_line(host, Config().network, Config().files),
            "require": str(require),
            "missing": missing,
            "enforced": [asdict(row) for row in table(host)],
            "rungs": [rung.as_json() for rung in host.tried],
            "namespaces": {"kind": host.namespaces, "refusal": host.namespaces_note or None},
            "mechanisms": list(host.mechanisms),
            "record": record,
            "advice": [asdict(item) for item in advice],
        }
        print_json(report)
    else:
        _print(host, missing, advice, record, require)
    return 1 if missing else 0


def probe(workdir: str) -> Host:
    """What a run would find: its nursery is started, and ended again."""
    from ..backends.local import LocalBackend
    from ..backends.nursery import Orders
    from ..sandbox.gpus import find

    config = Config()
    run_id = f"doctor-{os.getpid()}-{secrets.token_hex(2)}"
    nothing: dict[str, object] = {"exit_code": 0}
    gpus = find(config.gpus, os.environ)
    orders = Orders(
        run_id, workdir, config.run_memory, config.run_pids, gpus, (), lambda: None, lambda *_: nothing, lambda *_: None
    )
    orders = replace(orders, priority=Priority(io_weights=True))
    backend = LocalBackend(orders, print)
    backend.close()
    return backend.host


def read_facts() -> Facts:
    """Look at the host."""
    uid = os.geteuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    sysctls = {}
    for name in _SYSCTLS:
        text = _first_line(f"/proc/sys/{name.replace('.', '/')}")
        if text is not None:
            sysctls[name] = text
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        kinds = {line.partition(" - ")[2].split()[0] for line in file}
    return Facts(
        uid=uid,
        user=user,
        container=_container(),
        in_slurm_job="SLURM_JOB_ID" in os.environ,
        has_systemd=os.path.isdir("/run/systemd/system"),
        cgroup_versions=tuple(n for n, kind in ((1, "cgroup"), (2, "cgroup2")) if kind in kinds),
        sysctls=sysctls,
    )


def _container() -> str | None:
    """The marks that engines leave: podman-run(1), Docker, and $container of systemd's container interface."""
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
    return None if os.access(path, os.W_OK | os.X_OK) else f"{path} cannot be written: a run there could keep no record"


# -- conclusions: pure -------------------------------------------------------------------------------------------------


def table(host: Host) -> list[Row]:
    """What is enforced of what a rule declares, and of what a job must not do."""
    soft, inside, by = host.cgroup == "soft", host.namespaces != "none", host.cgroup
    how_killed = "PID namespace: all of it, at once" if inside else "subreaper: what is below the job's supervisor"
    own_count = "RLIMIT_NPROC in its user namespace, or polled" if inside else "RLIMIT_NPROC of the user, and polled"
    no_namespace = f"no namespaces: {host.namespaces_note}"
    rows = [
        Row("memory", "soft", "polled; killed when beyond") if soft else Row("memory", "enforced", by),
        Row("processes", "soft", own_count) if soft else Row("processes", "enforced", by),
        Row("CPU", "not enforced", "needs a cgroup with the cpu controller")
        if "cpu" in host.not_enforced
        else Row("CPU", "enforced", by),
        Row("all jobs together", "not enforced", "needs a cgroup")
        if soft
        else Row("all jobs together", "enforced", by),
        Row("I/O weight", "not enforced", host.io_weight_note)
        if host.io_weight_note
        else Row("I/O weight", "enforced", f"on {', '.join(host.io_devices)}"),
        Row("wall time", "enforced", "Forge's clock"),
        Row("size of a file", "enforced", "RLIMIT_FSIZE"),
        Row("end of all processes", "enforced" if inside else "soft", how_killed),
        Row("new privileges", "enforced", "no_new_privs, capabilities dropped"),
    ]
    view = ("enforced", "namespaces") if inside else ("not enforced", no_namespace)
    return [*rows, Row("private /tmp, /dev, /proc", *view), Row("network off", *view), *_file_rows(host, inside)]


def _file_rows(host: Host, inside: bool) -> Iterator[Row]:
    """The policies guard and strict, and what keeps a job from going around them."""
    if not inside or host.layers_note:
        why = host.layers_note or f"no namespaces: {host.namespaces_note}"
        yield Row("inputs read-only", "not enforced", why)
        yield Row("outputs all at once", "not enforced", why)
    else:
        where = "in the scratch, then copied" if host.layers_apart else "beside their places, then renamed"
        yield Row("inputs read-only", "enforced", "read-only mounts")
        yield Row("outputs all at once", "enforced", f"written to an overlay {where}")
    for name, what in (("landlock", "no writes elsewhere"), ("seccomp", "no odd system calls")):
        has = name in host.mechanisms
        yield Row(what, "enforced" if has else "not enforced", name if has else f"this kernel gives no {name}")


def advise(host: Host, facts: Facts) -> Iterator[Advice]:
    """What would change it, most likely first."""
    if host.cgroup == "soft":
        yield from _advise_cgroup(host, facts)
    elif "cpu" in host.not_enforced:
        yield _delegation("the cpu controller is not delegated to users")
    if host.namespaces == "none":
        yield from _advise_namespaces(facts)
    if host.cgroup != "soft" and host.io_weight_note and facts.container is None:  # no option of an engine helps
        yield _advise_io(host, facts)


def _advise_io(host: Host, facts: Facts) -> Advice:
    only = "only for --forge-io-weight"
    if host.io_weight_note == NO_CONTROLLER and facts.uid != 0:
        return _delegation(f"{only}: the io controller is not delegated to users")
    return Advice(
        f"{only}: no disk is divided by weight; as root, for a disk on which jobs wait for each other",
        "modprobe bfq\necho bfq > /sys/block/DISK/queue/scheduler",
    )


def _delegation(why: str) -> Advice:
    return Advice(
        f"{why}; as root, then log in again",
        f"mkdir -p {os.path.dirname(_DROP_IN)}\n"
        f"printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' > {_DROP_IN}\n"
        "systemctl daemon-reload",
    )


def _advise_cgroup(host: Host, facts: Facts) -> Iterator[Advice]:
    read_only = any(os.strerror(errno.EROFS) in (rung.refusal or "") for rung in host.tried)
    if facts.container is not None and (read_only or not facts.cgroup_versions):
        if 1 in facts.cgroup_versions:
            engine = "docker" if facts.container == "docker" else "podman"
            do = f"{engine} run --user 0 --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:rw …"
        elif facts.container == "docker":
            do = "docker run --privileged --cgroupns=private …"
        else:
            do = "podman run --cgroupns=private --security-opt unmask=/sys/fs/cgroup …"
        yield Advice("the container's cgroup file system is read-only or not its own", do)
        return
    if facts.in_slurm_job:
        yield Advice(
            "inside a Slurm job only the limits of that job hold, and they hold for all jobs of the run together",
            "in slurm.conf: TaskPlugin=task/cgroup    in cgroup.conf: ConstrainRAMSpace=yes ConstrainCores=yes",
        )
        return
    if facts.uid == 0 and read_only:
        yield Advice("the cgroup file system is read-only", "mount -o remount,rw /sys/fs/cgroup")
        return
    if 1 in facts.cgroup_versions:
        yield Advice(
            "this host uses cgroup v1, which cannot be given to users; with systemd, boot it with v2",
            "on the kernel's command line: systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
        )
    if facts.has_systemd:
        yield Advice(
            "your systemd user manager cannot be reached; log in with ssh or at a terminal, not with su",
            f"loginctl enable-linger {facts.user}\nexport XDG_RUNTIME_DIR=/run/user/{facts.uid}",
        )
        yield _delegation("controllers are not delegated to users")
    if facts.uid != 0:
        yield Advice("root needs no delegation", "sudo snakemake --executor forge …")


def _advise_namespaces(facts: Facts) -> Iterator[Advice]:
    known = facts.sysctls
    if known.get("user.max_user_namespaces") == "0":
        yield Advice("no user namespaces are allowed; as root", "sysctl -w user.max_user_namespaces=10000")
    if known.get("kernel.unprivileged_userns_clone") == "0":
        yield Advice(
            "only root may make user namespaces (Debian); as root", "sysctl -w kernel.unprivileged_userns_clone=1"
        )
    if known.get("kernel.apparmor_restrict_unprivileged_userns") == "1":
        yield Advice(
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
        yield Advice("the container's engine forbids namespaces or mounts", do)


def _print(host: Host, missing: list[str], advice: list[Advice], record: str | None, require: Require) -> None:
    print(isolation_line(host, Config().network, Config().files))
    print()
    rows = table(host)
    for row in rows:
        print(f"{row.what.ljust(27)}{row.state.ljust(14)}{row.how}")
    print("\nplaces for a cgroup, in the order in which they were tried")
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
