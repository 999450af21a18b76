"""Decisions, and nothing else: what Snakemake asks for and what the host has, to what shall be done.

Every function here is pure: no file, no process, no clock. ``check_resources`` refuses nonsense before anything
runs, ``plan`` turns a request into a :class:`LaunchSpec`.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .errors import RequirementError, UsageError
from .files import PRIVATE_DIRECTORIES, checkpoint_directory, not_staged, plan_files, with_paths
from .hints import near_miss
from .model import (
    DEFAULT_IO_WEIGHT,
    CheckFormats,
    Checks,
    Checksums,
    Config,
    CpuMode,
    FilePolicy,
    Files,
    Host,
    Isolation,
    JobRequest,
    KeepScratch,
    LaunchSpec,
    Limits,
    Nested,
    Network,
    OnDisconnect,
    Require,
    RunContext,
    TargetKind,
    Undeclared,
)
from .priority import FORGE_NUMBERS, check_priority, forge_number, missing_io_weight
from .units import MEBIBYTE, show_bytes

MIN_MEMORY_BYTES = 4 * MEBIBYTE
"""Next to nothing runs below this: what starts a job and its shell are charged with 1 to 2 MiB (measured with Snakemake
9.27; see docs/explanation/job.md). Most likely the unit is wrong: docs/decisions/0007-refuse-impossible-memory.md."""

FORGE_RESOURCES: Mapping[
    str, type[CheckFormats | Checksums | CpuMode | FilePolicy | KeepScratch | Nested | Network | Undeclared]
] = {
    "forge_check_formats": CheckFormats,
    "forge_checksums": Checksums,
    "forge_cpu": CpuMode,
    "forge_files": FilePolicy,
    "forge_nested": Nested,
    "forge_undeclared": Undeclared,
    "forge_network": Network,
    "forge_keep_scratch": KeepScratch,
}
"""The resources with which a rule overrides a setting of the run."""


NESTED_LEAVES_OUT = ("landlock", "seccomp", "proc-masks")
"""Mechanisms that would forbid a job's own sandboxes."""

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
                "below which next to nothing runs. It counts MB, not GB. "
                "Raise mem_mb, or leave it out to be limited by the run alone."
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
        if key.startswith("forge_") and key != "forge_runtime":  # which catalog.choose looks at
            _check_forge_resource(rule, key, value)


def _check_forge_resource(rule: str, key: str, value: object) -> None:
    if key in FORGE_NUMBERS:
        forge_number(rule, {key: value}, key)
        return
    if key not in FORGE_RESOURCES:
        hint = near_miss(key, (*FORGE_RESOURCES, *FORGE_NUMBERS, "forge_runtime"))
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


def check_requirement(require: Require, host: Host, io_weight: int = DEFAULT_IO_WEIGHT) -> None:
    """Refuse a host that enforces less than the user demands.

    Args:
        io_weight: what was asked for.

    Raises:
        RequirementError: names what is missing and what would mend it.

    """
    if require is Require.NONE:
        return
    missing = missing_for(require, host) + missing_io_weight(require, host, io_weight)
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
    elif require is Require.FULL and host.layers_note:
        missing.append(f"staging of outputs ({host.layers_note})")
    return missing


def isolation_line(host: Host, network: Network, files: FilePolicy, *, io_weights: bool = False) -> str:
    """What the jobs of a run are enclosed in: the same line at the start of a run, in its record and from doctor.

    Args:
        io_weights: whether anybody has asked for weights for I/O.

    """
    memory = show_bytes(host.run_memory_bytes)
    if host.cgroup == "soft":
        limits = f"soft limits (memory and processes polled, none of CPU, {memory} for each job)"
    else:
        without = f" but not of {' and '.join(host.not_enforced)}" if host.not_enforced else ""
        limits = f"limits by {host.cgroup}{without}, {memory} for all jobs together"
    inside = ", ".join(host.mechanisms) + (" (no namespaces)" if host.namespaces == "none" else "")
    advice = "; more: snakemake-forge doctor" if missing_for(Require.FULL, host) else ""
    gpus = f"; GPUs {', '.join(host.gpus)}" if host.gpus else ""
    unable = files is not FilePolicy.OPEN and (host.namespaces == "none" or host.layers_note)
    policy = f"files {files}"
    if unable:
        policy = f"files {FilePolicy.OPEN} ({files} cannot be had: {host.layers_note or 'no namespaces'})"
    if io_weights and host.io_weight_note:
        advice = f"; no weights for I/O ({host.io_weight_note}); more: snakemake-forge doctor"
    return f"Forge: {limits}; {inside}; {policy}; network {network}{gpus}{advice}."


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
    check_priority(request.rule, request.resources, config.require, host)
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
    policy = _policy(request, config)
    undeclared = Undeclared(str(request.resources.get("forge_undeclared", config.undeclared)))
    nested = request.nested or request.resources.get("forge_nested", config.nested) == Nested.ON
    files = plan_files(request, policy, undeclared, host, run, nested=nested)
    files = with_paths(files, config)
    checkpoint = checkpoint_directory(request, run)
    may_adopt = adoptable(request, files)
    gpus = gpu_count(request.rule, request.resources, host.gpus)
    always = () if files.policy is FilePolicy.STRICT else run.exposed
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
        exposed=exposures([] if files.policy is FilePolicy.STRICT else paths, always, set(carried)),
        carried=carried,
        environment=_environment(limits, job_dir, checkpoint),
        checkpoint=checkpoint,
        recipe=hashlib.sha256(request.recipe.encode("utf-8", "surrogateescape")).hexdigest(),
        sources=request.sources,
        inputs=request.inputs,
        outputs=request.outputs,
        isolation=isolation(host, network, files, reduced=files.policy is not policy, io_weight=limits.io_weight),
        files=files,
        checks=_checks(request, config, policy, run),
        benchmark=request.benchmark and posixpath.join(run.workdir, request.benchmark),
        interactive=request.interactive,
        stream_bytes=config.stream_bytes,
        logs=tuple(path for path in request.logs if path != request.benchmark),
        gpu_count=gpus,
        together=request.together,
        adoptable=may_adopt,
        goes_on=may_adopt and not gpus and config.on_disconnect is OnDisconnect.FINISH,  # nobody counts them then
    )


def adoptable(request: JobRequest, files: Files) -> bool:
    """Whether a job's work can wait for another run: all that it writes is staged, and nobody else is in it."""
    writes = any(target.kind is TargetKind.OUTPUT for target in files.targets)
    return files.staged and writes and not (request.together or request.interactive or request.shadow or request.live)


def _checks(request: JobRequest, config: Config, policy: FilePolicy, run: RunContext) -> Checks:
    written = {product.path for product in request.products} | {target.path for target in request.targets}
    private = f"{run.workdir}/.snakemake/"  # local copies of what is in a storage: Snakemake's own affair
    inputs = (posixpath.normpath(posixpath.join(run.workdir, path)) for path in request.inputs)
    return Checks(
        checksums=Checksums(str(request.resources.get("forge_checksums", config.checksums))),
        formats=CheckFormats(str(request.resources.get("forge_check_formats", config.check_formats))),
        outputs=request.products,
        inputs=tuple(p for p in dict.fromkeys(inputs) if p not in written and not p.startswith(private)),
        may_change_inputs=policy is FilePolicy.OPEN,
    )


def stages(request: JobRequest, config: Config, host: Host, run: RunContext) -> bool:
    """Whether a job's outputs are kept apart until it has succeeded."""
    policy = _policy(request, config)
    return policy is not FilePolicy.OPEN and not_staged(request, policy, host, run) is None


def _policy(request: JobRequest, config: Config) -> FilePolicy:
    return FilePolicy(str(request.resources.get("forge_files", config.files)))


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
        disk_bytes=int(disk * MEBIBYTE) if disk is not None else config.disk_bytes,
        nice=_number_or(request, "forge_nice", config.nice),
        io_weight=_number_or(request, "forge_io_weight", config.io_weight),
    )


def _number_or(request: JobRequest, key: str, of_run: int) -> int:
    own = forge_number(request.rule, request.resources, key)
    return of_run if own is None else own


def _environment(limits: Limits, job_dir: str, checkpoint: str) -> dict[str, str]:
    variables = {
        "FORGE_JOB_DIR": job_dir,
        "FORGE_CHECKPOINT_DIR": checkpoint,
        "FORGE_CPUS": str(limits.cpus),
        "FORGE_RUNTIME": "host",
    }
    if limits.memory_bytes is not None:
        variables["FORGE_MEMORY_BYTES"] = str(limits.memory_bytes)
    return variables


def isolation(host: Host, network: Network, files: Files, *, reduced: bool, io_weight: int) -> Isolation:
    """What a job gets, for its record.

    Args:
        reduced: its file policy is less than what was asked for.
        io_weight: what was asked for.

    """
    mechanisms = tuple(m for m in host.mechanisms if not (files.nested and m in NESTED_LEAVES_OUT))
    mechanisms += ("net-ns",) if network is Network.OFF else ()
    mechanisms += ("read-only", "layers") if files.staged else ()
    missing = host.not_enforced + (("files",) if reduced else ())
    missing += ("io_weight",) if io_weight != DEFAULT_IO_WEIGHT and host.io_weight_note else ()
    return Isolation(host.cgroup, str(files.policy), mechanisms, network, missing)


def _slug(text: str) -> str:
    """A rule's name as a part of a file name (anonymous rules are numbers, module rules can be anything)."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:80]
