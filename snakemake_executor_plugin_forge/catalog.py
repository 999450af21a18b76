"""The catalog of runtimes as values, and what is decided with it. Pure; catalog_file.py reads ``forge.yaml``.

``None`` in a runtime means: not said there, so the settings of the run hold.
"""

from __future__ import annotations

import enum
import fnmatch
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .errors import UsageError
from .hints import near_miss
from .model import Config, FilePolicy, LaunchSpec, Network

T = TypeVar("T")

FILE_NAME = "forge.yaml"

RESOURCE = "forge_runtime"
"""The resource with which a rule names its runtime."""

HOST = "host"
"""The runtime that is always there: the environment in which Snakemake was started."""

UNKNOWN_YET = "<TBD>"
"""Snakemake's word for a resource that is worked out later."""


class Kind(enum.StrEnum):
    """What a runtime is made of."""

    HOST = "host"
    VENV = "venv"
    CONDA = "conda"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Paths:
    """Absolute paths beyond what the file policy gives: to be read, to be written, not to be seen."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()

    def __add__(self, other: Paths) -> Paths:
        """Both, each path once."""
        return Paths(
            _unique(self.read + other.read), _unique(self.write + other.write), _unique(self.hide + other.hide)
        )


def _unique(items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


@dataclass(frozen=True, slots=True)
class Allowance:
    """Limits of a job whose rule does not say otherwise."""

    memory_bytes: int | None = None
    pids: int | None = None
    wall_seconds: float | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """A named software environment with its limits and paths."""

    name: str
    kind: Kind = Kind.HOST
    source: str = ""
    """A requirements file (venv); an environment file, lock file or prefix (conda), absolute; an image (container)."""
    python: str | None = None  # venv: the interpreter that it is made with
    allowance: Allowance = field(default_factory=Allowance)
    network: Network | None = None
    files: FilePolicy | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    paths: Paths = field(default_factory=Paths)


@dataclass(frozen=True, slots=True)
class Catalog:
    """All of ``forge.yaml``."""

    path: str | None = None  # of the file; None: there is none
    default: str = HOST
    allowance: Allowance = field(default_factory=Allowance)
    network: Network | None = None
    files: FilePolicy | None = None
    runtimes: Mapping[str, Runtime] = field(default_factory=lambda: {HOST: Runtime(HOST)})
    rules: tuple[tuple[str, str], ...] = ()  # pattern of rule names, runtime; the first that fits holds
    protect: tuple[str, ...] = ()
    provenance: str | None = None  # the directory in which each run leaves its crate; no job sees it


def choose(
    rule: str,
    resources: Mapping[str, object],
    catalog: Catalog,
    *,
    uses_conda: bool = False,
    uses_container: bool = False,
) -> Runtime | None:
    """The runtime of a job: the rule's resource, else the catalog's rules, else the rule's own, else the default.

    Args:
        uses_conda: the rule has ``conda:``, and ``--software-deployment-method conda`` is on.
        uses_container: likewise ``container:`` and ``apptainer``.

    Returns:
        None for the rule's own ``conda:`` or ``container:``.

    Raises:
        UsageError: for a runtime that is not in the catalog (with the near miss), and for one environment inside
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
    """An environment's programs are found by absolute paths, and linked to libraries, that no image has."""
    own = "conda:" if uses_conda and runtime.kind is Kind.CONTAINER else None
    if uses_container and runtime.kind is not Kind.HOST:
        own = "container:"
    if own is not None:
        raise UsageError(
            f"Rule {rule} has {own} of its own and gets the runtime {runtime.name} ({runtime.kind}) from {why}. "
            "One cannot be used inside the other: the programs of an environment depend on paths and libraries that "
            f"an image does not have. Remove {own} from the rule, or give it no such runtime."
        )


def with_defaults(config: Config, catalog: Catalog) -> Config:
    """The settings of a run with the catalog's defaults: these hold where a flag has its own default."""
    plain = Config()
    return replace(
        config,
        memory_bytes=_first(_unless(config.memory_bytes, plain.memory_bytes), catalog.allowance.memory_bytes),
        pids=_first(_unless(config.pids, plain.pids), catalog.allowance.pids, config.pids),
        wall_seconds=_first(_unless(config.wall_seconds, plain.wall_seconds), catalog.allowance.wall_seconds),
        disk_bytes=_first(_unless(config.disk_bytes, plain.disk_bytes), catalog.allowance.disk_bytes),
        network=_first(_unless(config.network, plain.network), catalog.network, config.network) or plain.network,
        files=_first(_unless(config.files, plain.files), catalog.files, config.files) or plain.files,
        hidden=(*catalog.protect, *([catalog.provenance] if catalog.provenance else [])),
    )


def for_runtime(config: Config, runtime: Runtime) -> Config:
    """The settings for jobs in a runtime: what it says, else what the run says. Resources of a rule override both."""
    allowance = runtime.allowance
    return replace(
        config,
        memory_bytes=_first(allowance.memory_bytes, config.memory_bytes),
        pids=_first(allowance.pids, config.pids),
        wall_seconds=_first(allowance.wall_seconds, config.wall_seconds),
        disk_bytes=_first(allowance.disk_bytes, config.disk_bytes),
        network=runtime.network or config.network,
        files=runtime.files or config.files,
        hidden=(*config.hidden, *runtime.paths.hide),
        writable=runtime.paths.write,
        readable=runtime.paths.read,
    )


def dress(spec: LaunchSpec, runtime: Runtime, identity: str | None, root: str | None = None) -> LaunchSpec:
    """A planned job with the runtime that it has got.

    Args:
        identity: where ``run.json`` describes it; None for the host.
        root: of the image, if it is a container.

    """
    environment = {**runtime.env, **spec.environment, "FORGE_RUNTIME": runtime.name}
    spec = replace(spec, runtime=runtime.name, runtime_id=identity, environment=environment)
    if root is None:
        return spec
    # A file is seen with its directory, in which tools look for an index beside it.
    files = (posixpath.join(spec.workdir, path) for path in (*spec.inputs, *spec.outputs))
    near = (posixpath.dirname(posixpath.normpath(path)) for path in files)
    shown = (spec.workdir, *spec.exposed, *runtime.paths.read, *runtime.paths.write, *near)
    return replace(spec, root=root, shown=tuple(sorted(set(shown))))


def _unless(value: T, default: T) -> T | None:
    return None if value == default else value


def _first(*values: T | None) -> T | None:
    return next((v for v in values if v is not None), None)
