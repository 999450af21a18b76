"""Decisions, and nothing else: what Snakemake asks for and what the host has, to what shall be done.

Every function here is pure: no file, no process, no clock. ``check_resources`` refuses nonsense before anything
runs, ``plan`` turns a request into a :class:`LaunchSpec`.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .errors import RequirementError, UsageError
from .model import (
    Config,
    CpuMode,
    Host,
    Isolation,
    JobRequest,
    KeepScratch,
    LaunchSpec,
    Limits,
    Network,
    Require,
    RunContext,
)
from .units import MEBIBYTE, show_bytes

PRIVATE_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - these names are the point
"""Directories of which every job has its own, empty one."""

MIN_MEMORY_BYTES = 4 * MEBIBYTE
"""Below this not even ``shell: "true"`` runs: the forked process that starts the job and its shell need 3 to 4 MiB of
their own (measured with Snakemake 9.27; see docs/explanation/job.md)."""

FORGE_RESOURCES: Mapping[str, type[CpuMode | Network | KeepScratch]] = {
    "forge_cpu": CpuMode,
    "forge_network": Network,
    "forge_keep_scratch": KeepScratch,
}
"""The resources with which a rule overrides a setting of the run."""


GPU_RESOURCES = ("gpu", "gpus")
"""Two names for the same: how many GPUs a job has for itself."""

NUMBERED_NODE = re.compile(r"/dev/(?:\w[\w.-]*/)*(?:\w[\w.-]*?)?(\d+)")
"""A device node that has a number at its end, which is the group."""

AMD_NODES = "/dev/dri/renderD"


def check_resources(rule: str, resources: Mapping[str, object], host: Host) -> None:
    """Refuse resources that no job could run with.

    Raises:
        UsageError: names the rule, the resource, its value and what would be right.

    """
    memory = _number(rule, resources, "mem_mb")
    if memory is not None:
        size = int(memory * MEBIBYTE)
        if size < MIN_MEMORY_BYTES:
            raise UsageError(
                f"Rule {rule}: mem_mb={memory:g} is less than the {MIN_MEMORY_BYTES // MEBIBYTE} MB "
                "that starting any job takes. Raise mem_mb, or leave it out to be limited by the run alone."
            )
        if size > host.run_memory_bytes:
            raise UsageError(
                f"Rule {rule}: mem_mb={memory:g} is more than the {show_bytes(host.run_memory_bytes)} "
                f"({host.run_memory_bytes // MEBIBYTE} MB) that the jobs of this run may use together on this host. "
                "Lower mem_mb, or raise --forge-run-memory if the host has more."
            )
    _number(rule, resources, "runtime")
    _number(rule, resources, "disk_mb")
    gpu_count(rule, resources, host.gpus)
    for key, value in resources.items():
        if key.startswith("forge_"):
            _check_forge_resource(rule, key, value)


def _check_forge_resource(rule: str, key: str, value: object) -> None:
    if key not in FORGE_RESOURCES:
        near = difflib.get_close_matches(key, FORGE_RESOURCES, n=1)
        hint = f" Did you mean {near[0]}?" if near else f" Known are {', '.join(FORGE_RESOURCES)}."
        raise UsageError(f"Rule {rule}: resource {key}={value!r} is not known to Forge.{hint}")
    allowed = [str(v) for v in FORGE_RESOURCES[key]]
    if str(value) not in allowed:
        raise UsageError(f"Rule {rule}: resource {key}={value!r} is not one of {', '.join(allowed)}.")


def _number(rule: str, resources: Mapping[str, object], key: str) -> float | None:
    """A resource as a positive number; None if it is not there or not known yet (Snakemake's ``<TBD>``)."""
    value = resources.get(key)
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value <= 0:
        unit = {"runtime": "minutes", "mem_mb": "MB", "disk_mb": "MB"}[key]
        raise UsageError(f"Rule {rule}: {key}={value:g} must be above zero ({unit}).")
    return float(value)


def gpu_count(rule: str, resources: Mapping[str, object], gpus: tuple[str, ...]) -> int:
    """How many GPUs a job asks for; 0 if that is not known yet.

    Args:
        gpus: the device nodes of the run.

    Raises:
        UsageError: for more than there are, for what is no number, and for two numbers.

    """
    asked: dict[str, int] = {}
    for key in GPU_RESOURCES:
        value = resources.get(key)
        if value in (None, "<TBD>"):
            continue
        if not isinstance(value, int) or value < 0:
            raise UsageError(f"Rule {rule}: {key}={value!r} must be a whole number, 0 or more: how many GPUs.")
        if value > len(gpus):
            raise UsageError(
                f"Rule {rule}: {key}={value}, but {_gpus_in_words(gpus)}. Run it on a host that has them, or ask "
                f"for fewer: {key}={len(gpus)}, also with --set-resources {rule}:{key}={len(gpus)}."
            )
        asked[key] = value
    if len(set(asked.values())) > 1:
        raise UsageError(f"Rule {rule}: gpu={asked['gpu']} and gpus={asked['gpus']} mean the same; leave one out.")
    return next(iter(asked.values()), 0)


def _gpus_in_words(gpus: tuple[str, ...]) -> str:
    if not gpus:
        return "this run has no GPU: no /dev/nvidia0, no /dev/kfd with /dev/dri/renderD128, or not allowed to use them"
    return f"this run has {len(gpus)} ({', '.join(gpus)})"


def check_group(members: Iterable[tuple[str, Mapping[str, object]]], gpus: tuple[str, ...]) -> None:
    """Refuse a pipe or service group of which two members ask for GPUs.

    They would get them one after the other. Two such groups could then wait for each other for ever.

    Args:
        members: rule and resources of each.
        gpus: the device nodes of the run.

    Raises:
        UsageError: names the rules.

    """
    asking = [rule for rule, resources in members if gpu_count(rule, resources, gpus)]
    if len(asking) > 1:
        raise UsageError(
            f"Rules {' and '.join(asking)} run at the same time, as a group, and each asks for GPUs; only one job of "
            "a group can have some. Give all of them to one rule, or connect the rules with a file instead of a pipe."
        )


def with_gpus(spec: LaunchSpec, gpus: tuple[str, ...]) -> LaunchSpec:
    """The same with its devices, which it sees and nobody else does.

    Libraries count the devices that they can open, from 0, and do not know the host's numbers: the variables say so as
    they do in a Slurm job under ConstrainDevices and in a container with a part of the GPUs.
    """
    visible = ",".join(str(n) for n in range(len(gpus)))
    amd = any(node.startswith(AMD_NODES) for node in gpus)
    names = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES") if amd else ("CUDA_VISIBLE_DEVICES",)
    return replace(
        spec,
        gpus=gpus,
        limits=replace(spec.limits, gpus=tuple(gpu_number(node) for node in gpus)),
        environment={**spec.environment, **dict.fromkeys(names, visible)},
    )


def gpu_number(node: str) -> int:
    """The number at the end of a device node's name."""
    match = NUMBERED_NODE.fullmatch(node)
    assert match is not None, node  # settings and probe let no other pass
    return int(match[1])


def choose_gpus(found: Iterable[str], has_kfd: bool, environment: Mapping[str, str]) -> tuple[str, ...]:
    """``--forge-gpus auto``: NVIDIA's devices or, if there are none, AMD's; of those, what Snakemake itself may use.

    Args:
        found: device nodes of GPUs.
        has_kfd: whether there is /dev/kfd, without which no AMD device computes.
        environment: Snakemake's. SLURM_JOB_GPUS holds numbers of the host (sbatch(1)); those that
            end in VISIBLE_DEVICES count the devices that are there, from 0.

    Raises:
        UsageError: for variables that do not give numbers.

    """
    nodes = sorted(found, key=gpu_number)
    nvidia = [node for node in nodes if not node.startswith(AMD_NODES)]
    nodes = nvidia or (nodes if has_kfd else [])
    names = ("CUDA_VISIBLE_DEVICES",) if nvidia else ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    for name in ("SLURM_JOB_GPUS", *names):
        text = environment.get(name)
        if text is None or not nodes:
            continue
        try:
            numbers = [int(part) for part in text.split(",") if part.strip()]
        except ValueError:
            raise UsageError(
                f"--forge-gpus=auto: {name}={text} restricts the GPUs of this run, but not by their numbers. "
                f"Name the device nodes: --forge-gpus {','.join(nodes)} or fewer."
            ) from None
        if name == "SLURM_JOB_GPUS":
            return tuple(node for node in nodes if gpu_number(node) in numbers)
        return tuple(nodes[n] for n in dict.fromkeys(numbers) if 0 <= n < len(nodes))
    return tuple(nodes)


def check_requirement(require: Require, host: Host) -> None:
    """Refuse a host that enforces less than the user demands.

    Raises:
        RequirementError: names what is missing and what would mend it.

    """
    if require is Require.NONE:
        return
    missing = missing_for(require, host)
    if missing:
        raise RequirementError(
            f"--forge-require={require}: this host does not give Forge {' nor '.join(missing)}. "
            f"What would change that: snakemake-forge doctor --require {require}"
        )


def missing_for(require: Require, host: Host) -> list[str]:
    """What a host lacks of a level of isolation, in words, with the kernel's reasons."""
    missing = []
    if require is not Require.NONE:
        if host.cgroup == "soft":
            missing.append(f"limits that the kernel enforces ({host.cgroup_note})")
        elif host.not_enforced:
            missing.append(f"limits of {' and '.join(host.not_enforced)} ({host.cgroup_note})")
    if require is Require.FULL and host.namespaces == "none":
        missing.append(f"namespaces ({host.namespaces_note})")
    return missing


def isolation_line(host: Host, network: Network) -> str:
    """What the jobs of a run are enclosed in: the same line at the start of a run, in its record and from doctor."""
    memory = show_bytes(host.run_memory_bytes)
    if host.cgroup == "soft":
        limits = f"soft limits (memory and processes polled, none of CPU, {memory} for each job)"
    else:
        without = f" but not of {' and '.join(host.not_enforced)}" if host.not_enforced else ""
        limits = f"limits by {host.cgroup}{without}, {memory} for all jobs together"
    inside = ", ".join(host.mechanisms) + (" (no namespaces)" if host.namespaces == "none" else "")
    advice = "; more: snakemake-forge doctor" if missing_for(Require.FULL, host) else ""
    gpus = f"; GPUs {', '.join(host.gpus)}" if host.gpus else ""
    return f"Forge: {limits}; {inside}; network {network}{gpus}{advice}."


def plan(
    request: JobRequest, number: int, by_hand: str, how: str, config: Config, host: Host, run: RunContext
) -> LaunchSpec:
    """Decide how one attempt is run.

    Args:
        number: counts the attempts of this run; makes the name unique.
        by_hand: shell text that runs the same job without Forge.
        how: how the job is started, for the record.

    Raises:
        UsageError: for resources that cannot be met (see :func:`check_resources`).

    """
    check_resources(request.rule, request.resources, host)
    limits = _limits(request, config)
    network = Network(str(request.resources.get("forge_network", config.network)))
    if network is Network.OFF and host.namespaces == "none":
        raise UsageError(
            f"Rule {request.rule}: network off (--forge-network or forge_network) cannot be had on this host, "
            f"which lets Forge make no namespaces ({host.namespaces_note}). "
            "What would change that: snakemake-forge doctor --require full"
        )
    name = f"{number:05d}-{_slug(request.rule)}"
    job_dir = f"{run.state_dir}/runs/{run.run_id}/{name}"
    scratch_base = config.scratch_dir or str(request.resources.get("tmpdir") or PRIVATE_DIRECTORIES[0])
    scratch_base = posixpath.normpath(posixpath.join(run.workdir, scratch_base))
    paths = [posixpath.normpath(posixpath.join(run.workdir, p)) for p in _all_paths(request)]
    outputs = [posixpath.normpath(posixpath.join(run.workdir, p)) for p in (*request.outputs, *request.logs)]
    carried = tuple(p for p in outputs if posixpath.dirname(p) in PRIVATE_DIRECTORIES)
    return LaunchSpec(
        name=name,
        rule=request.rule,
        wildcards=request.wildcards,
        attempt=request.attempt,
        command=request.command,
        by_hand=by_hand,
        how=how,
        limits=limits,
        cpu_mode=CpuMode(str(request.resources.get("forge_cpu", config.cpu))),
        network=network,
        grace_seconds=config.grace_seconds,
        keep_scratch=KeepScratch(str(request.resources.get("forge_keep_scratch", config.keep_scratch))),
        workdir=run.workdir,
        job_dir=job_dir,
        scratch_base=f"{scratch_base}/forge-{run.run_id}",
        exposed=exposures(paths, run.exposed, set(carried)),
        carried=carried,
        environment=_environment(limits, job_dir),
        inputs=request.inputs,
        outputs=request.outputs,
        isolation=_isolation(host, network),
        benchmark=request.benchmark and posixpath.join(run.workdir, request.benchmark),
        interactive=request.interactive,
        gpu_count=gpu_count(request.rule, request.resources, host.gpus),
    )


def exposures(paths: Iterable[str], always: tuple[str, ...], carried: set[str]) -> tuple[str, ...]:
    """The paths below private directories that a job must see all the same, outermost first.

    A file is seen with its whole directory (tools look for an index beside it), unless that is the private
    directory itself.
    """
    wanted = list(always)
    for path in paths:
        private = _private_parent(path)
        if private is None or path in carried:
            continue
        parent = posixpath.dirname(path)
        wanted.append(path if parent == private else parent)
    chosen: list[str] = []
    for path in sorted(set(wanted), key=lambda p: (p.count("/"), p)):
        if not any(path == c or path.startswith(c + "/") for c in chosen):
            chosen.append(path)
    return tuple(chosen)


def _private_parent(path: str) -> str | None:
    return next((d for d in PRIVATE_DIRECTORIES if path.startswith(d + "/")), None)


def _all_paths(request: JobRequest) -> Iterable[str]:
    return (*request.inputs, *request.outputs, *request.logs, *request.linked)


def _limits(request: JobRequest, config: Config) -> Limits:
    memory = _number(request.rule, request.resources, "mem_mb")
    runtime = _number(request.rule, request.resources, "runtime")
    disk = _number(request.rule, request.resources, "disk_mb")
    return Limits(
        memory_bytes=int(memory * MEBIBYTE) if memory is not None else config.memory_bytes,
        cpus=max(1, request.threads),
        pids=config.pids,
        wall_seconds=runtime * 60 if runtime is not None else config.wall_seconds,
        disk_bytes=int(disk * MEBIBYTE) if disk is not None else None,
    )


def _environment(limits: Limits, job_dir: str) -> dict[str, str]:
    variables = {
        "FORGE_JOB_DIR": job_dir,
        "FORGE_CPUS": str(limits.cpus),
        "FORGE_RUNTIME": "host",
    }
    if limits.memory_bytes is not None:
        variables["FORGE_MEMORY_BYTES"] = str(limits.memory_bytes)
    return variables


def _isolation(host: Host, network: Network) -> Isolation:
    mechanisms = host.mechanisms + (("net-ns",) if network is Network.OFF else ())
    return Isolation(host.cgroup, "open", mechanisms, network, host.not_enforced)


def _slug(text: str) -> str:
    """A rule's name as a part of a file name (anonymous rules are numbers, module rules can be anything)."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:80]
