"""Pure decisions: what Snakemake asks for and what the host offers become a :class:`LaunchSpec`."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from typing import TypeVar

from .errors import UsageError
from .file_policy import PRIVATE_DIRECTORIES, checkpoint_directory, in_private, not_staged, plan_files, slug, with_paths
from .host import Host
from .job import (
    DEFAULT_IO_WEIGHT,
    Checks,
    Config,
    FilePolicy,
    Files,
    Isolation,
    JobRequest,
    LaunchSpec,
    Limits,
    Nested,
    Network,
    OnDisconnect,
    RunContext,
    TargetKind,
)
from .paths import run_name
from .resources import (
    AMD_NODES,
    check_required,
    check_resources,
    forge_number,
    gpu_count,
    gpu_number,
    missing_gpus,
    positive_number,
)
from .units import MEBIBYTE

E = TypeVar("E", bound=StrEnum)

SNAKEMAKE_BYTES = 128 * MEBIBYTE
"""The memory that an inner Snakemake may use beside that of its rule; 84 MiB were measured with 9.27."""

NESTED_LEAVES_OUT = ("landlock", "seccomp", "proc-masks")
"""Mechanisms that would keep a job from making sandboxes of its own."""


def with_gpus(spec: LaunchSpec, gpus: tuple[str, ...]) -> LaunchSpec:
    """Give a job the GPUs that it has for itself.

    Libraries count the devices that they can open, from 0, and do not know the host's numbers. The variables therefore
    count from 0 too, as in a Slurm job under ConstrainDevices and in a container with a part of the GPUs.
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


# Long because it names every field of a LaunchSpec once.
def plan(
    request: JobRequest,
    number: int,
    by_hand: str,
    how: str,
    config: Config,
    host: Host,
    run: RunContext,
    *,
    remote: bool = False,
) -> LaunchSpec:
    """Decide how one attempt runs. Longer than other functions: each field of the result takes a line.

    Args:
        number: number of the attempt in this run, which makes its name unique.
        by_hand: shell text that runs the same job without Forge.
        how: how the job is started, for the record.
        remote: whether the job runs on another host, under a scheduler.

    Raises:
        UsageError: for resources that this host cannot provide (see :func:`check_resources`).
    """
    check_resources(request.rule, request.resources, host)
    check_required(request.rule, request.resources, config.require, host)
    limits = _limits(request, config, host)
    network = _network(request, config, host)
    name = f"{number:05d}-{slug(request.rule)}"
    job_dir = f"{run.state_dir}/runs/{run.run_id}/{name}"
    scratch_base = config.scratch_dir or str(request.resources.get("tmpdir") or PRIVATE_DIRECTORIES[0])
    outputs = _absolute((*request.outputs, *request.logs), run)
    carried = tuple(p for p in outputs if in_private(p, run.workdir))
    policy = _setting(request, "forge_files", config.files)
    nested = request.nested or _setting(request, "forge_nested", config.nested) is Nested.ON
    undeclared = _setting(request, "forge_undeclared", config.undeclared)
    files = with_paths(plan_files(request, policy, undeclared, host, run, nested=nested), config)
    strict = files.policy is FilePolicy.STRICT
    paths = () if strict else _absolute((*request.inputs, *request.outputs, *request.logs, *request.linked), run)
    checkpoint = checkpoint_directory(request, run)
    may_adopt = adoptable(request, files, carried, remote=remote)
    gpus = gpu_count(request.rule, request.resources, host.gpus)
    return LaunchSpec(
        name=name,
        rule=request.rule,
        wildcards=request.wildcards,
        attempt=request.attempt,
        command=request.command,
        by_hand=by_hand,
        how=how,
        limits=limits,
        cpu_mode=_setting(request, "forge_cpu", config.cpu),
        network=network,
        grace_seconds=config.grace_seconds,
        keep_scratch=_setting(request, "forge_keep_scratch", config.keep_scratch),
        workdir=run.workdir,
        job_dir=job_dir,
        scratch_base=f"{posixpath.normpath(posixpath.join(run.workdir, scratch_base))}/{run_name(run.run_id)}",
        exposed=exposures(paths, () if strict else run.exposed, set(carried)),
        carried=carried,
        environment=_environment(limits, job_dir, checkpoint),
        checkpoint=checkpoint,
        recipe=hashlib.sha256(request.recipe.encode("utf-8", "surrogateescape")).hexdigest(),
        sources=request.sources,
        declared_at=request.declared_at,
        by_default=request.by_default,
        threads_asked=request.threads_asked,
        limits_from={name: where for name, where in config.limits_from.items() if not request.resources.get(name)},
        inputs=request.inputs,
        outputs=request.outputs,
        isolation=isolation(
            host,
            network,
            files,
            reduced=files.policy is not policy,
            io_weight=limits.io_weight,
            without_gpus=missing_gpus(request.rule, request.resources, host.gpus) is not None,
        ),
        files=files,
        checks=_checks(request, config, policy, run),
        benchmark=request.benchmark and posixpath.join(run.workdir, request.benchmark),
        interactive=request.interactive,
        stream_bytes=config.stream_bytes,
        logs=tuple(path for path in request.logs if path != request.benchmark),
        gpu_count=gpus,
        together=request.together,
        group=request.group,
        adoptable=may_adopt,
        detachable=may_adopt and not (remote or gpus) and config.on_disconnect is OnDisconnect.FINISH,
    )


def _setting(request: JobRequest, resource: str, of_run: E) -> E:
    """The value that a rule sets with a resource, or the setting of the run."""
    return type(of_run)(str(request.resources.get(resource, of_run)))


def _absolute(paths: Iterable[str], run: RunContext) -> list[str]:
    return [posixpath.normpath(posixpath.join(run.workdir, path)) for path in paths]


def _network(request: JobRequest, config: Config, host: Host) -> Network:
    network = _setting(request, "forge_network", config.network)
    if network is Network.OFF and host.namespaces == "none":
        raise UsageError(
            f"Rule {request.rule}: network off (--forge-network or forge_network) cannot be had on this host, "
            f"which lets Forge make no namespaces ({host.namespaces_note}). "
            "What would change that: snakemake-forge doctor --require full"
        )
    return network


def adoptable(request: JobRequest, files: Files, carried: tuple[str, ...], *, remote: bool) -> bool:
    """Decide whether a later run may adopt the job: wait for it in place of its own, or take the outputs over.

    All that the job writes must be staged, with an output in it and not only logs. Nobody else may have a part in the
    job while it runs: no group, no terminal, no shadow directory, no pipe and no service. On another host, no output
    may lie directly in a private directory such as /tmp: it would be that host's.

    Args:
        carried: outputs that lie directly in a private directory.
        remote: see :func:`plan`.
    """
    writes = any(target.kind is TargetKind.OUTPUT for target in files.targets)
    shared = request.together or request.interactive or request.shadow or request.live
    return files.staged and writes and not shared and not (remote and carried)


def _checks(request: JobRequest, config: Config, policy: FilePolicy, run: RunContext) -> Checks:
    written = {product.path for product in request.products} | {target.path for target in request.targets}
    private = f"{run.workdir}/.snakemake/"  # Snakemake itself looks after its local copies of files in a storage
    inputs = dict.fromkeys(_absolute(request.inputs, run))
    written.update(_absolute(request.streamed, run))
    return Checks(
        checksums=_setting(request, "forge_checksums", config.checksums),
        formats=_setting(request, "forge_check_formats", config.check_formats),
        outputs=request.products,
        inputs=tuple(path for path in inputs if path not in written and not path.startswith(private)),
        shadow=request.shadow_directory,
        may_change_inputs=policy is FilePolicy.OPEN,
    )


def stages(request: JobRequest, config: Config, host: Host, run: RunContext) -> bool:
    """Whether a job's outputs are kept apart until it has succeeded."""
    policy = _setting(request, "forge_files", config.files)
    return policy is not FilePolicy.OPEN and not_staged(request, policy, host, run) is None


def exposures(paths: Iterable[str], always: tuple[str, ...], carried: set[str]) -> tuple[str, ...]:
    """Paths of the host below private directories that a job must see, outermost first.

    The job sees the whole directory of a file, because tools look for an index beside it, unless that is the private
    directory itself.
    """
    wanted = list(always)
    for path in paths:
        private = next((d for d in PRIVATE_DIRECTORIES if path.startswith(d + "/")), None)
        if private is None or path in carried:
            continue
        parent = posixpath.dirname(path)
        wanted.append(path if parent == private else parent)
    chosen: list[str] = []
    for path in sorted(set(wanted), key=lambda p: (p.count("/"), p)):
        if not any(path == c or path.startswith(c + "/") for c in chosen):
            chosen.append(path)
    return tuple(chosen)


def _limits(request: JobRequest, config: Config, host: Host) -> Limits:
    memory, runtime, disk = (
        positive_number(request.rule, request.resources, key) for key in ("mem_mb", "runtime", "disk_mb")
    )
    memory_bytes = int(memory * MEBIBYTE) if memory is not None else config.memory_bytes
    if request.own_snakemake and memory_bytes is not None:
        memory_bytes += max(0, min(SNAKEMAKE_BYTES, host.run_memory_bytes - memory_bytes))
    return Limits(
        memory_bytes=memory_bytes,
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


def isolation(
    host: Host, network: Network, files: Files, *, reduced: bool, io_weight: int, without_gpus: bool = False
) -> Isolation:
    """The isolation that a job gets, for its record.

    Args:
        reduced: whether its file policy protects less than the user asked for.
        io_weight: the weight that the user asked for.
        without_gpus: whether the job has fewer GPUs than it asks for.
    """
    mechanisms = tuple(m for m in host.mechanisms if not (files.nested and m in NESTED_LEAVES_OUT))
    mechanisms += ("net-ns",) if network is Network.OFF else ()
    mechanisms += ("read-only", "layers") if files.staged else ()
    missing = host.not_enforced + (("files",) if reduced else ())
    missing += ("io_weight",) if io_weight != DEFAULT_IO_WEIGHT and host.io_weight_note else ()
    missing += ("gpu",) if without_gpus else ()
    return Isolation(host.cgroup, str(files.policy), mechanisms, network, missing)
