"""The catalog of runtimes as values, and pure decisions about it. software/catalog_file.py reads ``forge.yaml``.

``None`` in a runtime means that the catalog does not set it there, so that the settings of the run hold.
"""

from __future__ import annotations

import enum
import fnmatch
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .errors import UsageError, near_miss
from .job import Config, FilePolicy, LaunchSpec, Network
from .resources import UNKNOWN_YET

T = TypeVar("T")

RESOURCE = "forge_runtime"
"""The resource with which a rule names its runtime."""

HOST = "host"
"""The runtime that always exists: the environment of Snakemake itself."""


class RuntimeKind(enum.StrEnum):
    """The kind of software environment that a runtime is."""

    HOST = "host"
    VENV = "venv"
    CONDA = "conda"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Paths:
    """Absolute paths that a runtime adds to the file policy: to read, to write, to hide."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()

    def __add__(self, other: Paths) -> Paths:
        """Join the paths of both; each path stands there once."""
        pairs = ((self.read, other.read), (self.write, other.write), (self.hide, other.hide))
        return Paths(*(tuple(dict.fromkeys(ours + theirs)) for ours, theirs in pairs))


@dataclass(frozen=True, slots=True)
class Allowance:
    """Limits of a job whose rule sets none."""

    memory_bytes: int | None = None
    pids: int | None = None
    wall_seconds: float | None = None
    disk_bytes: int | None = None

    def origins(self, where: str) -> dict[str, str]:
        """Return the key of each limit that is set here, put into ``where``, by the resource that overrides it."""
        limits = {
            "mem_mb": ("memory", self.memory_bytes),
            "pids": ("pids", self.pids),
            "runtime": ("wall", self.wall_seconds),
            "disk_mb": ("disk", self.disk_bytes),
        }
        return {resource: where.format(key) for resource, (key, limit) in limits.items() if limit is not None}


@dataclass(frozen=True, slots=True)
class Runtime:
    """A named software environment with its limits and paths."""

    name: str
    kind: RuntimeKind = RuntimeKind.HOST
    source: str = ""
    """A requirements file (venv); an environment file, lock file or prefix (conda), absolute; an image (container)."""
    python: str | None = None  # the interpreter that makes the venv
    allowance: Allowance = field(default_factory=Allowance)
    network: Network | None = None
    files: FilePolicy | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    paths: Paths = field(default_factory=Paths)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The content of ``forge.yaml``."""

    path: str | None = None  # None: there is no such file
    default: str = HOST
    allowance: Allowance = field(default_factory=Allowance)
    network: Network | None = None
    files: FilePolicy | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    paths: Paths = field(default_factory=Paths)
    runtimes: Mapping[str, Runtime] = field(default_factory=lambda: {HOST: Runtime(HOST)})
    rules: tuple[tuple[str, str], ...] = ()  # pattern of rule names, and runtime; the first pattern that fits holds
    protect: tuple[str, ...] = ()
    provenance: str | None = None  # the directory in which each run leaves its crate; no job sees it


def of_rule(name: str, kind: RuntimeKind, catalog: Catalog) -> Runtime:
    """The runtime of a rule's own ``conda:`` or ``container:``, for which the defaults of the catalog hold as well."""
    return Runtime(name, kind, env=catalog.env, paths=catalog.paths)


def choose(
    rule: str,
    resources: Mapping[str, object],
    catalog: Catalog,
    *,
    uses_conda: bool = False,
    uses_container: bool = False,
) -> Runtime | None:
    """Choose a job's runtime: the rule's resource, else the catalog's rules, else the rule's own, else the default.

    Args:
        uses_conda: whether the rule has ``conda:``, and ``--software-deployment-method conda`` is on.
        uses_container: whether the rule has ``container:``, and ``--software-deployment-method apptainer`` is on.

    Returns:
        None for the rule's own ``conda:`` or ``container:``.

    Raises:
        UsageError: for a runtime that the catalog does not have (with the near miss), and for an environment inside
            another.
    """
    asked = resources.get(RESOURCE)
    if asked is not None and asked != UNKNOWN_YET:
        runtime = _named(rule, str(asked), catalog)
        why = f"resources: {RESOURCE}={asked!r}"
    else:
        pattern, name = next(((p, n) for p, n in catalog.rules if fnmatch.fnmatchcase(rule, p)), (None, None))
        if name is None:
            return None if uses_conda or uses_container else catalog.runtimes[catalog.default]
        runtime, why = catalog.runtimes[name], f"{pattern!r} under rules: of {catalog.path}"
    _refuse_nesting(rule, runtime, why, uses_conda=uses_conda, uses_container=uses_container)
    return runtime


def _named(rule: str, name: str, catalog: Catalog) -> Runtime:
    if name in catalog.runtimes:
        return catalog.runtimes[name]
    where = f"the catalog {catalog.path}" if catalog.path else "a catalog: there is no forge.yaml (see --forge-config)"
    raise UsageError(f"Rule {rule}: {RESOURCE}={name!r} is not in {where}.{near_miss(name, catalog.runtimes)}")


def _refuse_nesting(rule: str, runtime: Runtime, why: str, *, uses_conda: bool, uses_container: bool) -> None:
    """Refuse an environment inside an image, which lacks the absolute paths and libraries that its programs need."""
    own = "conda:" if uses_conda and runtime.kind is RuntimeKind.CONTAINER else None
    if uses_container and runtime.kind is not RuntimeKind.HOST:
        own = "container:"
    if own is not None:
        raise UsageError(
            f"Rule {rule} has {own} of its own and gets the runtime {runtime.name} ({runtime.kind}) from {why}. "
            "Neither can run inside the other: the programs of an environment depend on paths and libraries that "
            f"an image does not have. Remove {own} from the rule, or give it no such runtime."
        )


def with_defaults(config: Config, catalog: Catalog) -> Config:
    """Put the catalog's defaults into the settings of a run, wherever a flag has its own default."""
    plain, allowance = Config(), catalog.allowance
    flags = Allowance(
        _unless(config.memory_bytes, plain.memory_bytes),
        _unless(config.pids, plain.pids),
        _unless(config.wall_seconds, plain.wall_seconds),
    )
    return replace(
        config,
        memory_bytes=_first(flags.memory_bytes, allowance.memory_bytes),
        pids=_first(flags.pids, allowance.pids, config.pids),
        wall_seconds=_first(flags.wall_seconds, allowance.wall_seconds),
        disk_bytes=allowance.disk_bytes,
        limits_from={**allowance.origins("{} under defaults: of forge.yaml"), **flags.origins("--forge-{}")},
        network=_first(_unless(config.network, plain.network), catalog.network, config.network) or plain.network,
        files=_first(_unless(config.files, plain.files), catalog.files, config.files) or plain.files,
        hidden=(*catalog.protect, *([catalog.provenance] if catalog.provenance else [])),
    )


def for_runtime(config: Config, runtime: Runtime) -> Config:
    """The settings for jobs in a runtime: the runtime's, else the run's. Resources of a rule override both."""
    allowance = runtime.allowance
    return replace(
        config,
        memory_bytes=_first(allowance.memory_bytes, config.memory_bytes),
        pids=_first(allowance.pids, config.pids),
        wall_seconds=_first(allowance.wall_seconds, config.wall_seconds),
        disk_bytes=_first(allowance.disk_bytes, config.disk_bytes),
        limits_from={**config.limits_from, **allowance.origins(f"{{}} of runtime {runtime.name} in forge.yaml")},
        network=runtime.network or config.network,
        files=runtime.files or config.files,
        hidden=(*config.hidden, *runtime.paths.hide),
        writable=runtime.paths.write,
        readable=runtime.paths.read,
    )


def with_runtime(spec: LaunchSpec, runtime: Runtime, identity: str | None, root: str | None = None) -> LaunchSpec:
    """Add its runtime to a planned job.

    Args:
        identity: the runtime's key in ``run.json``; None for the host.
        root: the directory of the image, if the runtime is a container.
    """
    environment = {**runtime.env, **spec.environment, "FORGE_RUNTIME": runtime.name}
    spec = replace(spec, runtime=runtime.name, runtime_id=identity, environment=environment)
    if root is None:
        return spec
    # The job sees the whole directory of each file, because tools look for an index beside it.
    files = (posixpath.join(spec.workdir, path) for path in (*spec.inputs, *spec.outputs))
    near = (posixpath.dirname(posixpath.normpath(path)) for path in files)
    shown = (spec.workdir, *spec.exposed, *runtime.paths.read, *runtime.paths.write, *near)
    return replace(spec, root=root, shown=tuple(sorted(set(shown))))


def _unless(value: T, default: T) -> T | None:
    return None if value == default else value


def _first(*values: T | None) -> T | None:
    return next((v for v in values if v is not None), None)
