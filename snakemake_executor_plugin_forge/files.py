"""What a job may see and change of the file system, decided. Pure; sandbox/view.py carries it out.

``guard`` makes everything read-only and lays a *layer* (an overlay: what is written to it is kept apart) over each
directory in which the rule's outputs lie, above all the working directory. See docs/explanation/files.md.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import replace

from .model import Config, FilePolicy, Files, Host, JobRequest, RunContext, Target, Undeclared

PRIVATE_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - these names are the point
"""Directories of which every job has its own, empty one."""

STAGING = ".snakemake/forge/staging"
"""In the working directory: where its layers are."""

STAGING_ELSEWHERE = ".forge-staging"
"""In any other directory that has a layer."""


CHECKPOINTS = ".snakemake/forge/checkpoints"
"""In the working directory: one directory for each job that keeps checkpoints of its own."""


def checkpoint_directory(request: JobRequest, run: RunContext) -> str:
    """Of a job, whichever attempt of it: named by rule, wildcards and outputs."""
    identity = json.dumps([request.rule, sorted(request.wildcards.items()), request.outputs])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:20]
    return f"{run.workdir}/{CHECKPOINTS}/{re.sub(r'[^A-Za-z0-9_.-]', '_', request.rule)[:40]}-{digest}"


def below(path: str, directory: str) -> bool:
    """Whether ``path`` is in ``directory`` or is it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def not_staged(request: JobRequest, policy: FilePolicy, host: Host, run: RunContext) -> str | None:
    """Why a job's outputs cannot be staged although its policy says so; None if they can."""
    if policy is FilePolicy.OPEN:
        return None
    if host.namespaces == "none":
        return f"this host lets Forge make no namespaces ({host.namespaces_note})"
    if host.layers_note:
        return f"this host lets Forge lay no overlay over {run.workdir} ({host.layers_note})"
    if request.interactive:
        return "the job is interactive (--debug, --edit-notebook)"
    if any(below(run.workdir, path) for path in request.live):
        return "a service's file is directly in the working directory"
    roots = [run.workdir, *(posixpath.dirname(target.path) for target in request.targets)]
    return "an output or the working directory is directly below /" if "/" in roots else None


def plan_files(
    request: JobRequest, policy: FilePolicy, undeclared: Undeclared, host: Host, run: RunContext, *, nested: bool
) -> Files:
    """Decide for one job. Where its outputs cannot be staged, the policy becomes ``open``.

    Args:
        nested: see :class:`.model.Files`.

    """
    if policy is FilePolicy.OPEN or not_staged(request, policy, host, run) is not None:
        confined = _confined(request, run) if policy is not FilePolicy.OPEN and host.namespaces == "none" else ()
        return Files(FilePolicy.OPEN, undeclared, writable=confined, nested=nested)
    staged = tuple(t for t in request.targets if posixpath.dirname(t.path) not in PRIVATE_DIRECTORIES)
    layers = _layers(staged, run.workdir, run.mount_points)
    home = _home(run, layers) if host.home_layer else None
    mounts = _inner_mounts((*layers, home), run.mount_points)
    return Files(
        policy=policy,
        undeclared=undeclared,
        layers=layers,
        apart=host.layers_apart,
        targets=tuple(t for t in staged if not t.live),
        inputs=_protected(request.real_inputs, staged, layers, mounts),
        mounts=mounts,
        live=request.live,
        home=home,
        visible=_visible(request, run) if policy is FilePolicy.STRICT else (),
        expected=(*request.sources, *request.linked),
        keep_incomplete=request.keep_incomplete,
        nested=nested,
    )


def with_paths(files: Files, config: Config) -> Files:
    """The same with what the settings and the job's runtime say of paths."""
    return replace(
        files,
        hidden=config.hidden,
        # none at all: everything is; Landlock would leave these alone writable
        writable=(*files.writable, *config.writable) if files.staged or files.writable else (),
        visible=(*files.visible, *config.readable) if files.policy is FilePolicy.STRICT else (),
        audit=config.audit and files.policy is FilePolicy.GUARD,
    )


def fitted(files: Files, host: Host, mount_points: Iterable[str], home: str | None) -> Files:
    """For another host than the one that was planned for: with what this one can do.

    Args:
        mount_points: of this host.
        home: $HOME, if it is there.

    """
    if not files.staged:
        return files
    if host.namespaces == "none" or host.layers_note:
        homes = (home,) if home is not None else ()
        outside = (posixpath.dirname(target.path) for target in files.targets)
        places = (*files.layers, *outside, *files.live, *homes, *PRIVATE_DIRECTORIES, *files.writable)
        confined = tuple(dict.fromkeys(places)) if host.namespaces == "none" else ()
        return Files(FilePolicy.OPEN, files.undeclared, writable=confined, hidden=files.hidden, nested=files.nested)
    points = tuple(mount_points)
    layers = _layers(files.targets, files.layers[0], points)
    kept = files.home if host.home_layer and files.home == home else None
    return replace(
        files, layers=layers, apart=host.layers_apart, mounts=_inner_mounts((*layers, kept), points), home=kept
    )


def _inner_mounts(covered: Iterable[str | None], mount_points: Iterable[str]) -> tuple[str, ...]:
    """Other file systems below directories that have a layer, through which they would not be seen."""
    roots = [f"{directory}/" for directory in covered if directory is not None]
    return tuple(point for point in mount_points if any(point.startswith(root) for root in roots))


def _confined(request: JobRequest, run: RunContext) -> tuple[str, ...]:
    """Where there are no mounts: the directories that Landlock leaves writable."""
    outside = (posixpath.dirname(target.path) for target in request.targets)
    home = (run.home,) if run.home is not None else ()
    return tuple(dict.fromkeys((run.workdir, *outside, *request.live, *home, *PRIVATE_DIRECTORIES)))


def _layers(targets: Iterable[Target], workdir: str, mount_points: tuple[str, ...]) -> tuple[str, ...]:
    """The working directory, and the directories of those targets that are not in it or on another file system."""
    layers = [workdir]
    for directory in sorted({posixpath.dirname(target.path) for target in targets}):
        if not any(_covers(layer, directory, mount_points) for layer in layers):
            layers.append(directory)
    return tuple(layers)


def _covers(layer: str, path: str, mount_points: Iterable[str]) -> bool:
    """Whether ``path`` is in the layer: what is mounted in the directory is not seen through an overlay over it."""
    inner = layer + "/"
    return below(path, layer) and not any(point.startswith(inner) and below(path, point) for point in mount_points)


def _protected(
    inputs: Iterable[str], targets: Iterable[Target], layers: tuple[str, ...], mounts: tuple[str, ...]
) -> tuple[str, ...]:
    """Inputs that a layer would make changeable, if only for the job; but not what is an output too, or has one in it.

    The changes of a job to an input in its layer would be dropped; the author of the rule shall hear of it when it
    happens.
    """
    written = {target.path for target in targets}
    ancestors = {directory for path in written for directory in _ancestors(path)}
    return tuple(
        path
        for path in dict.fromkeys(inputs)
        if path not in written
        and path not in ancestors
        and any(path != layer and _covers(layer, path, mounts) for layer in layers)
    )


def _ancestors(path: str) -> Iterable[str]:
    while (parent := posixpath.dirname(path)) != path:
        yield parent
        path = parent


def _home(run: RunContext, layers: tuple[str, ...]) -> str | None:
    home = run.home
    if home is None or home == "/" or any(below(home, directory) for directory in (*layers, *PRIVATE_DIRECTORIES)):
        return None
    return home


def _visible(request: JobRequest, run: RunContext) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*run.visible, *request.sources, *request.linked, *request.real_inputs)))
