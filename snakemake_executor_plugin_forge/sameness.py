"""Whether a job of this run is the one that an earlier run has started: what it does, with what, and to what.

What a job reads without declaring it (a module that a script imports, the workflow's ``config``, a reference below a
directory that is no input) is not a part of it, as it is none of what Snakemake itself compares.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .model import LaunchSpec, TargetKind

_CHEAP_BYTES = 1 << 20  # of a file whose content is looked at: a millisecond
_ALL_BYTES = 8 << 20  # of all of them together
_STAMP = ".snakemake_timestamp"  # with which Snakemake says how old a directory is
_SHOWN = 3

Version = tuple[int, int, str | None]
"""Bytes, time of change in ns and, of a small file, its SHA-256."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a job from another one. Threads, limits, retries and the names of runs are no part of it."""

    rule: str
    wildcards: Mapping[str, str]
    outputs: tuple[str, ...]  # absolute
    logs: tuple[str, ...]  # absolute; benchmark files too
    recipe: str  # the rule's code and params: see LaunchSpec
    command: str  # as it is run: with what it got from variables of the workflow
    runtime: str  # its name, and what it is
    policy: str  # what it was enclosed in: files, undeclared, network
    inputs: Mapping[str, Version | None]  # and scripts; None: not there, or not a file of this host

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Identity:
        """The opposite.

        Raises:
            ValueError, TypeError, KeyError: for what :meth:`as_json` cannot have given.

        """
        return cls(
            rule=str(data["rule"]),
            wildcards={str(key): str(value) for key, value in data["wildcards"].items()},
            outputs=tuple(map(str, data["outputs"])),
            logs=tuple(map(str, data["logs"])),
            recipe=str(data["recipe"]),
            command=str(data["command"]),
            runtime=str(data["runtime"]),
            policy=str(data["policy"]),
            inputs={str(path): _version_of(value) for path, value in data["inputs"].items()},
        )


def _version_of(data: Any) -> Version | None:
    if data is None:
        return None
    size, mtime_ns, checksum = data
    return int(size), int(mtime_ns), None if checksum is None else str(checksum)


def places(spec: LaunchSpec) -> tuple[str, ...]:
    """Where its outputs will be: what two attempts of one job have in common, whatever else has changed."""
    return tuple(target.path for target in spec.files.targets if target.kind is TargetKind.OUTPUT)


def identify(spec: LaunchSpec) -> Identity:
    """That of a job, with its inputs as they are now."""
    files = spec.files
    return Identity(
        rule=spec.rule,
        wildcards=dict(spec.wildcards),
        outputs=places(spec),
        logs=tuple(target.path for target in files.targets if target.kind is not TargetKind.OUTPUT),
        recipe=spec.recipe,
        command=_digest(spec.command or ""),
        runtime=f"{spec.runtime} {spec.runtime_id or ''}".strip(),
        policy=f"{files.policy} {files.undeclared} {spec.network}",
        inputs=versions(spec.workdir, (*spec.inputs, *spec.sources)),
    )


def versions(workdir: str, paths: Iterable[str]) -> dict[str, Version | None]:
    """The present version of each, links followed.

    Content is compared where that is cheap: of files up to 1 MiB, up to 8 MiB of a job.
    """
    found: dict[str, Version | None] = {}
    left = _ALL_BYTES
    for path in dict.fromkeys(paths):
        place = os.path.join(workdir, path)
        try:
            status = os.stat(place)
            if stat.S_ISDIR(status.st_mode):
                found[path] = (0, _time_of_directory(place, status), None)
                continue
            cheap = stat.S_ISREG(status.st_mode) and status.st_size <= min(_CHEAP_BYTES, left)
            found[path] = (status.st_size, status.st_mtime_ns, _content(place) if cheap else None)
            left -= status.st_size if cheap else 0
        except OSError:  # a storage's name, or it cannot be read: it is the same the next time
            found[path] = None
    return found


def _time_of_directory(path: str, status: os.stat_result) -> int:
    try:
        return os.stat(f"{path}/{_STAMP}").st_mtime_ns
    except OSError:
        return status.st_mtime_ns


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def differences(old: Identity, new: Identity) -> list[str]:
    """In what the second job is another one, in words; nothing if it is the same. Pure."""
    found = []
    if (old.rule, dict(old.wildcards)) != (new.rule, dict(new.wildcards)):
        found.append("it is another job that writes the same")
    if (sorted(old.outputs), sorted(old.logs)) != (sorted(new.outputs), sorted(new.logs)):
        found.append("its outputs or logs are others now")
    if old.recipe != new.recipe:
        found.append("its code or params have changed")
    elif old.command != new.command:
        found.append("its command has changed")
    if old.runtime != new.runtime:
        found.append(f"its runtime was {old.runtime}, and is {new.runtime} now")
    if old.policy != new.policy:
        found.append(f"it was enclosed differently ({old.policy}; now {new.policy})")
    if old.inputs != new.inputs:
        found.append(_other_inputs(old.inputs, new.inputs))
    return found


def _other_inputs(old: Mapping[str, Version | None], new: Mapping[str, Version | None]) -> str:
    if list(old) != list(new):
        others = sorted(old.keys() ^ new.keys())
        return f"it has other inputs: {_listed(others)}" if others else "its inputs have another order"
    return f"{_listed([path for path in old if old[path] != new[path]])} changed meanwhile"


def _listed(paths: list[str]) -> str:
    more = len(paths) - _SHOWN
    return ", ".join(paths[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
