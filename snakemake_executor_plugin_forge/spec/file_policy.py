"""Pure decisions about what a job may see and change of the file system. sandbox/filesystem/mount_plan.py applies them.

``guard`` makes everything read-only and lays a *layer* (an overlay, which keeps all changes apart) over each directory
that holds outputs of the rule, above all the working directory. See docs/explanation/files.md.
"""

from __future__ import annotations

import functools
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace

from .host import Host
from .job import Config, FilePolicy, Files, JobRequest, RunContext, Target, Undeclared
from .paths import CHECKPOINTS

PRIVATE_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - these names are the point
"""Directories that every job has for itself, empty at its start."""

TEMPORARY_VARIABLES = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")
"""Environment variables by which programs find the directory for their temporary files."""

_MOST_LAYERS = 8  # with more directories of outputs, layers are over directories around them
_TOP = ("etc", "home", "media", "mnt", "opt", "root", "run", "srv", "usr", "var", "var/lib", "var/run")
_SYSTEM = frozenset({"/", *(f"/{name}" for name in _TOP)})
"""Directories of many people and programs, over which there is no layer for outputs further down."""

MayCover = Callable[[str], bool]
_KERNEL_DIRECTORIES = ("/dev/", "/proc/")  # what lies in them is a device, or an open file of a process


def checkpoint_directory(request: JobRequest, run: RunContext) -> str:
    """The checkpoint directory that all attempts of a job share: named by rule, wildcards and outputs."""
    identity = json.dumps([request.rule, sorted(request.wildcards.items()), request.outputs])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:20]
    return f"{run.workdir}/{CHECKPOINTS}/{slug(request.rule, 40)}-{digest}"


def slug(rule: str, longest: int = 80) -> str:
    """A rule's name as a part of a file name. Names of anonymous rules are numbers; rules of modules can have any."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", rule)[:longest]


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
    """Decide what one job may see and change. Where its outputs cannot be staged, the policy becomes ``open``.

    Args:
        nested: see :class:`.job.Files`.
    """
    if policy is FilePolicy.OPEN or not_staged(request, policy, host, run) is not None:
        confined = _confined(request, run) if policy is not FilePolicy.OPEN and host.namespaces == "none" else ()
        return Files(FilePolicy.OPEN, undeclared, writable=confined, nested=nested)
    staged = tuple(t for t in request.targets if _can_be_staged(t.path, run.workdir))
    layers = _layers(staged, (run.workdir, run.home, *run.caches), run.mount_points, run.may_cover)
    home = _home(run, layers) if host.home_layer or policy is FilePolicy.STRICT else None
    kept = policy is FilePolicy.GUARD and host.home_layer
    hidden = (*layers, run.home)
    caches = tuple(d for d in run.caches if not any(x and below(d, x) for x in hidden)) if kept else ()
    mounts = _inner_mounts((*layers, home, *caches), run.mount_points)
    visible = (*run.visible, *request.sources, *request.linked, *request.links, *request.real_inputs)
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
        caches=caches,
        visible=tuple(dict.fromkeys(visible)) if policy is FilePolicy.STRICT else (),
        expected=(*request.sources, *request.linked),
        keep_incomplete=request.keep_incomplete,
        nested=nested,
    )


def in_private(path: str, workdir: str) -> bool:
    """Whether a file lies directly in a directory that is the job's own, which the working directory never is."""
    parent = posixpath.dirname(path)
    return parent in PRIVATE_DIRECTORIES and parent != workdir


def _can_be_staged(path: str, workdir: str) -> bool:
    """Whether a layer over the directory of a target is possible: not over /dev for ``log: "/dev/null"``."""
    if in_private(path, workdir):
        return False
    return not path.startswith(_KERNEL_DIRECTORIES) or below(path, "/dev/shm")  # noqa: S108


def inside_outputs(targets: Iterable[Target]) -> dict[str, list[Target]]:
    """The targets inside each outermost output directory: they appear with it, in one step, and go with it."""
    targets = tuple(targets)
    directories = {target.path for target in targets if target.directory}
    found: dict[str, list[Target]] = {}
    for target in targets if directories else ():
        around = [directory for directory in ancestors(target.path) if directory in directories]
        if around:
            found.setdefault(around[-1], []).append(target)
    return found


def with_paths(files: Files, config: Config) -> Files:
    """Add the paths that the settings and the job's runtime name."""
    # guard and open hide nothing but what is in the private directories
    strict, private = files.policy is FilePolicy.STRICT, PRIVATE_DIRECTORIES
    readable = [path for path in config.readable if strict or any(below(path, place) for place in private)]
    kept = [path for path in (files.home, *files.caches) if path and not any(below(path, w) for w in config.writable)]
    return replace(
        files,
        home=files.home if files.home in kept else None,
        caches=tuple(path for path in files.caches if path in kept),
        hidden=config.hidden,
        # empty means that everything is writable; with a path in it, Landlock would forbid all others
        writable=(*files.writable, *config.writable) if files.staged or files.writable else (),
        visible=(*files.visible, *readable),
        audit=config.audit and files.policy is FilePolicy.GUARD,
    )


def fitted(
    files: Files, host: Host, mount_points: Iterable[str], home: str | None, may_cover: MayCover = lambda _: True
) -> Files:
    """Adapt a plan to another host than the one that it was made for.

    Args:
        mount_points: the mount points of this other host.
        home: $HOME, if it exists on this host.
        may_cover: whether layers can be kept in a directory of this host.
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
    layers = _layers(files.targets, (files.layers[0], home, *files.caches), points, may_cover)
    kept = files.home if host.home_layer and files.home == home else None
    caches = files.caches if host.home_layer else ()
    mounts = _inner_mounts((*layers, kept, *caches), points)
    return replace(files, layers=layers, apart=host.layers_apart, mounts=mounts, home=kept, caches=caches)


def in_place(files: Files) -> Files:
    """A plan for a job whose files others write as well, where Forge cannot see them."""
    return Files(FilePolicy.OPEN, files.undeclared, hidden=files.hidden, nested=files.nested)


def _inner_mounts(covered: Iterable[str | None], mount_points: Iterable[str]) -> tuple[str, ...]:
    """Other file systems below directories that have a layer: an overlay would hide them."""
    roots = [f"{directory}/" for directory in covered if directory is not None]
    return tuple(point for point in mount_points if any(point.startswith(root) for root in roots))


def _confined(request: JobRequest, run: RunContext) -> tuple[str, ...]:
    """The directories that Landlock leaves writable on a host where Forge can mount nothing."""
    outside = (posixpath.dirname(target.path) for target in request.targets)
    home = (run.home,) if run.home is not None else ()
    return tuple(dict.fromkeys((run.workdir, *outside, *request.live, *home, *PRIVATE_DIRECTORIES)))


def _layers(
    targets: Iterable[Target], run: Iterable[str | None], mount_points: Iterable[str], may_cover: MayCover
) -> tuple[str, ...]:
    """The working directory, and the directories of targets outside it or on another file system.

    If these are many, a layer over a directory around them takes their place.

    Args:
        targets: of the job.
        run: the working directory, and other directories around which no layer may be.
        mount_points: of the host.
        may_cover: whether layers can be kept in a directory.
    """
    around = [path for path in run if path is not None]
    points = frozenset(mount_points)
    layers = dict.fromkeys(around[:1])
    for directory in sorted({posixpath.dirname(target.path) for target in targets}):
        if not _is_covered(directory, layers, points):
            layers[directory] = None
    if len(layers) <= _MOST_LAYERS:
        return tuple(layers)
    kept = {parent for path in (*around, *PRIVATE_DIRECTORIES) for parent in (path, *ancestors(path))} | _SYSTEM
    groups: dict[str, list[str]] = {}
    for directory in list(layers)[1:]:
        groups.setdefault(_mount_point(directory, points), []).append(directory)
    merged = (path for group in groups.values() for path in _merged(group, kept, may_cover))
    return tuple(dict.fromkeys((*around[:1], *merged)))


def _merged(directories: list[str], kept: set[str], may_cover: MayCover) -> Iterator[str]:
    """Yield directories that have all of these in them, as few as may be."""
    common = posixpath.commonpath(directories)
    if len(directories) == 1 or common in directories or (common not in kept and may_cover(common)):
        yield common
    else:
        parts: dict[str, list[str]] = {}
        for directory in directories:
            parts.setdefault(directory[len(common) :].lstrip("/").partition("/")[0], []).append(directory)
        for part in parts.values():
            yield from _merged(part, kept, may_cover)


def _mount_point(path: str, points: Container[str]) -> str:
    """The innermost mount point around a path."""
    return next((place for place in (path, *ancestors(path)) if place in points), "/")


def _is_covered(path: str, layers: Container[str], points: Container[str]) -> bool:
    """Whether ``path`` is in a layer: an overlay over a directory does not show the mounts in that directory."""
    for place in (path, *ancestors(path)):
        if place in layers:
            return True
        if place in points:
            return False
    return False


def _protected(
    inputs: Iterable[str], targets: Iterable[Target], layers: tuple[str, ...], mounts: tuple[str, ...]
) -> tuple[str, ...]:
    """Inputs in a layer, without those that are an output too or have one in them: the job must not change them.

    Forge would drop a job's changes to an input in its layer. A read-only input fails at once, so that the author of
    the rule hears of it.
    """
    written = {target.path for target in targets}
    above = {directory for path in written for directory in ancestors(path)}
    around, points = frozenset(layers), frozenset(mounts)
    covered = functools.cache(lambda directory: _is_covered(directory, around, points))
    return tuple(
        path
        for path in dict.fromkeys(inputs)
        if path not in written and path not in above and path not in points and covered(posixpath.dirname(path))
    )


def ancestors(path: str) -> Iterator[str]:
    """Yield the directories around a path, the innermost first."""
    while (parent := posixpath.dirname(path)) != path:
        yield parent
        path = parent


def _home(run: RunContext, layers: tuple[str, ...]) -> str | None:
    home = run.home
    if home in (None, "/", *PRIVATE_DIRECTORIES) or any(below(home, directory) for directory in layers):
        return None
    return home
