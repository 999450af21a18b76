"""The fingerprint of a job tells whether a job of this run is the one that an earlier run has started.

Files that a job reads without declaring them (a module that a script imports, the workflow's ``config``, a reference
outside of all inputs) are no part of it; Snakemake does not compare them either.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..record.checksum import TIMESTAMP
from ..spec.job import LaunchSpec, TargetKind
from .file_version import FileVersion

_CHEAP_BYTES = 1 << 20  # of a file whose content is compared: a millisecond
_ALL_BYTES = 8 << 20  # of all of them together
_SHOWN = 3


class ContentVersion(NamedTuple):
    """The version of an input on any host that sees it, as a JSON list in records."""

    size_bytes: int
    mtime_ns: int
    sha256: str | None  # of a small file


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identifies a job. Threads, limits, retries and the names of runs are no part of it."""

    rule: str
    wildcards: Mapping[str, str]
    outputs: tuple[str, ...]  # absolute
    logs: tuple[str, ...]  # absolute; benchmark files too
    recipe: str  # the rule's code and params: see LaunchSpec
    command: str  # digest of the command as it is run, with the values of the workflow's variables
    runtime: str  # its name and identity
    policy: str  # files, undeclared, network
    inputs: Mapping[str, ContentVersion | None]  # and scripts; None: missing, or not a file of this host

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """Read what :meth:`as_json` has returned.

        Raises:
            ValueError, TypeError, KeyError: for other values.
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


def _version_of(data: Any) -> ContentVersion | None:
    if data is None:
        return None
    size, mtime_ns, checksum = data
    return ContentVersion(int(size), int(mtime_ns), None if checksum is None else str(checksum))


def output_paths(spec: LaunchSpec) -> tuple[str, ...]:
    """The places of a job's outputs, by which an earlier attempt of it is found."""
    return tuple(target.path for target in spec.files.targets if target.kind is TargetKind.OUTPUT)


def take_fingerprint(spec: LaunchSpec) -> Fingerprint:
    """The fingerprint of a job with its inputs as they are now."""
    files = spec.files
    return Fingerprint(
        rule=spec.rule,
        wildcards=dict(spec.wildcards),
        outputs=output_paths(spec),
        logs=tuple(target.path for target in files.targets if target.kind is not TargetKind.OUTPUT),
        recipe=spec.recipe,
        command=hashlib.sha256((spec.command or "").encode("utf-8", "surrogateescape")).hexdigest(),
        runtime=f"{spec.runtime} {spec.runtime_id or ''}".strip(),
        policy=f"{files.policy} {files.undeclared} {spec.network}",
        inputs=input_versions(spec.workdir, (*spec.inputs, *spec.sources)),
    )


def input_versions(workdir: str, paths: Iterable[str]) -> dict[str, ContentVersion | None]:
    """The present versions of inputs, links followed; with a checksum of files up to 1 MiB, up to 8 MiB per job."""
    found: dict[str, ContentVersion | None] = {}
    left = _ALL_BYTES
    for path in dict.fromkeys(paths):
        place = os.path.join(workdir, path)
        try:
            status = os.stat(place)
            if stat.S_ISDIR(status.st_mode):
                found[path] = ContentVersion(0, _time_of_directory(place, status), None)
                continue
            cheap = stat.S_ISREG(status.st_mode) and status.st_size <= min(_CHEAP_BYTES, left)
            version = FileVersion.of(status)
            found[path] = ContentVersion(version.size_bytes, version.mtime_ns, _content(place) if cheap else None)
            left -= version.size_bytes if cheap else 0
        except OSError:  # a name in a storage, or an unreadable file: the next run finds it so too
            found[path] = None
    return found


def _time_of_directory(path: str, status: os.stat_result) -> int:
    try:
        return os.stat(f"{path}/{TIMESTAMP}").st_mtime_ns
    except OSError:
        return status.st_mtime_ns


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """Differences between two jobs, in words; empty if they are the same job. Pure."""
    found = []
    if (old.rule, dict(old.wildcards)) != (new.rule, dict(new.wildcards)):
        found.append("another job writes the same outputs")
    if (sorted(old.outputs), sorted(old.logs)) != (sorted(new.outputs), sorted(new.logs)):
        found.append("its outputs or logs have changed")
    if old.recipe != new.recipe:
        found.append("its code or params have changed")
    elif old.command != new.command:
        found.append("its command has changed")
    if old.runtime != new.runtime:
        found.append(f"its runtime was {old.runtime}, and is {new.runtime} now")
    if old.policy != new.policy:
        found.append(f"its file or network policy was {old.policy}, and is {new.policy} now")
    if old.inputs != new.inputs:
        found.append(_other_inputs(old.inputs, new.inputs))
    return found


def _other_inputs(old: Mapping[str, ContentVersion | None], new: Mapping[str, ContentVersion | None]) -> str:
    if list(old) != list(new):
        others = sorted(old.keys() ^ new.keys())
        return f"it has other inputs: {_listed(others)}" if others else "the order of its inputs has changed"
    return f"{_listed([path for path in old if old[path] != new[path]])} changed meanwhile"


def _listed(paths: list[str]) -> str:
    more = len(paths) - _SHOWN
    return ", ".join(paths[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
