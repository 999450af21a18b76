"""Verdicts and specifications in JSON: the one place that writes and reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from ..spec.errors import UsageError
from ..spec.job import (
    RECORD_SCHEMA,
    CpuMode,
    FilePolicy,
    Files,
    Isolation,
    KeepScratch,
    LaunchSpec,
    Limits,
    Network,
    Target,
    TargetKind,
    Undeclared,
)
from ..spec.verdict import Cause, EndedBy, Outcome, Refusal, RefusalKind, Usage, Verdict
from .jsonfile import MOST_BYTES, STDERR, VERDICT, load
from .plain_files import read_end

TAIL_BYTES = 8192
"""Bytes from the end of a stream or log that a verdict has."""
_MOST = 2.0**64  # a bound on all numbers of a verdict
_BESIDE_THE_RECORD = ("stderr_tail", "in_place")
"""The fields that ``verdict.json`` leaves out: the stream beside it and ``isolation.files`` have them."""

_OF_THE_SPEC = (
    *("rule", "attempt", "retry", "retry_of", "submitted", "runtime", "backend", "how"),
    *("declared_at", "by_default", "threads_asked", "slurm_job"),
)


def encode(verdict: Verdict) -> dict[str, object]:
    """Return all of a verdict in values that JSON has."""
    return {
        **plain(verdict),
        "usage": plain(verdict.usage),
        "evidence": dict(verdict.evidence),
        "outputs": [dict(output) for output in verdict.outputs],
        "refusals": [asdict(refusal) for refusal in verdict.refusals],
    }


def decode(data: Any) -> Verdict:
    """Return the verdict in the output of :func:`encode`, or in a record, which leaves out some fields.

    Another process wrote it, perhaps a job: any input gives either a verdict that all of Forge can work with, or an
    error. Unknown fields are ignored: a later version may have written them.

    Raises:
        ValueError: for anything that :func:`encode` cannot have written.
    """
    try:
        values = {name: read(data[name]) for name, read in _READ.items() if name in _object(data)}
        return Verdict(**{"exit_code": None, "signal": None, **values})
    except TypeError as error:
        raise ValueError(f"no verdict: {error}") from error


def load_verdict(path: str, most_bytes: int = MOST_BYTES) -> Verdict | None:
    """Return the verdict in a file; None if the file is missing, damaged, or longer than ``most_bytes``."""
    with suppress(ValueError):
        return decode(load(path, most_bytes))
    return None


def _a(*kinds: type) -> Callable[[Any], Any]:
    """Return a reader of values of some kinds. It refuses numbers that no verdict can have."""

    def read(value: Any) -> Any:
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if wrong or (isinstance(value, int | float) and not -_MOST < value < _MOST):
            raise TypeError(f"{value!r:.100} is none of {kinds}")
        return value

    return read


def _or_null(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


_text, _number, _object, _list = _a(str), _a(int, float), _a(dict), _a(list, tuple)


def _all(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: tuple(map(read, _list(value)))


def _usage(value: object) -> Usage:
    unused = Usage()
    read = {name: _number if getattr(unused, name) is not None else _or_null(_number) for name in Usage.__slots__}
    return Usage(**{name: read[name](number) for name, number in _object(value).items() if name in read})


def _refusal(value: object) -> Refusal:
    data = _object(value)
    subject, place = (_text(data.get(name, "")) for name in ("subject", "place"))
    return Refusal(RefusalKind(data.get("kind")), subject, _a(int)(data.get("error", 0)), place)


_READ: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("reason", "happened", "remedy", "started", "stderr_tail", "directory"), _text),
    **dict.fromkeys(("exit_code", "signal"), _or_null(_a(int))),
    **dict.fromkeys(("notes", "undeclared_writes"), _all(_text)),
    **dict.fromkeys(("in_place", "staged"), _a(bool)),
    "outcome": Outcome,
    "cause": _or_null(Cause),
    "ended_by": _or_null(EndedBy),
    "usage": _usage,
    "seconds": _number,
    "error": _or_null(_text),
    "undeclared_reads": _or_null(_all(_text)),
    "evidence": _object,
    "outputs": _all(_object),
    "refusals": _all(_refusal),
}
"""The reader of each field of a verdict."""


def verdict_json(spec: LaunchSpec, verdict: Verdict) -> dict[str, object]:
    """Return the object that is ``verdict.json``."""
    return {
        "schema": RECORD_SCHEMA,
        **{name: getattr(spec, name) for name in _OF_THE_SPEC},
        "wildcards": dict(spec.wildcards),
        **{name: value for name, value in encode(verdict).items() if name not in _BESIDE_THE_RECORD},
        "seconds": round(verdict.seconds, 6),
        "limits": spec.limits.as_json(),
        "isolation": plain(spec.isolation),
        "adopted": None,  # code that decides on staged outputs fills these two in: staging/pending.py
        "discarded": None,
        "directory": spec.job_dir,
    }


def read_verdict(directory: str) -> Verdict | None:
    """Return the verdict in an attempt's record; None if it has none, or a damaged one."""
    found = load_verdict(f"{directory}/{VERDICT}")
    return found and replace(found, stderr_tail=read_end(f"{directory}/{STDERR}", TAIL_BYTES), directory=directory)


def was_discarded(directory: str) -> bool:
    """Whether the outputs that an attempt had staged were discarded."""
    return bool((load(f"{directory}/{VERDICT}") or {}).get("discarded"))


def as_json(spec: LaunchSpec) -> dict[str, object]:
    """Return the sandbox of an attempt, which ``spec.json`` does not say elsewhere."""
    return {
        "network": str(spec.network),
        "exposed": spec.exposed,
        "files": {**plain(spec.files), "targets": [plain(target) for target in spec.files.targets]},
        "root": spec.root,
        "shown": spec.shown,
        "gpus": spec.gpus,
    }


def plain(value: Verdict | Usage | Isolation | Files | Target) -> dict[str, object]:
    """Return the fields of a dataclass; dataclasses.asdict() takes ten times as long, as it copies every value."""
    return {name: getattr(value, name) for name in value.__slots__}


def from_json(record: Mapping[str, Any], name: str, scratch_base: str, environment: Mapping[str, str]) -> LaunchSpec:
    """Return a specification for a sandbox like that of an attempt.

    Args:
        record: the ``spec.json`` of the attempt.
        name: the name of the new specification.
        environment: variables beside those of the attempt.

    Raises:
        UsageError: for a record of an older version of Forge, without a sandbox.
    """
    sandbox = record.get("sandbox")
    if sandbox is None:
        raise UsageError(f"The record of {record['name']} does not say what its sandbox was like: it is too old.")
    limits = {name: value for name, value in record["limits"].items() if name in Limits.__slots__}
    isolation = record["isolation"]
    return LaunchSpec(
        name=name,
        rule=record["rule"],
        wildcards=record["wildcards"],
        attempt=record["attempt"],
        command=record["command"],
        by_hand="",
        how="shell",
        limits=Limits(**{**limits, "wall_seconds": None, "gpus": tuple(limits.get("gpus", ()))}),
        cpu_mode=CpuMode(record["cpu_mode"]),
        network=Network(sandbox["network"]),
        grace_seconds=0.0,
        keep_scratch=KeepScratch.NEVER,
        workdir=record["workdir"],
        job_dir="",
        scratch_base=scratch_base,
        exposed=tuple(sandbox["exposed"]),
        carried=(),
        environment={**record["environment"], **environment},
        inputs=tuple(record["inputs"]),
        outputs=tuple(record["outputs"]),
        isolation=Isolation(isolation["limits"], isolation["files"], (), Network(sandbox["network"])),
        files=_files(sandbox["files"]),
        runtime=record["runtime"],
        root=sandbox["root"],
        shown=tuple(sandbox["shown"]),
        gpus=tuple(sandbox["gpus"]),
        interactive=True,
    )


def _files(data: Mapping[str, Any]) -> Files:
    known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    targets = tuple(replace(Target(**target), kind=TargetKind(target["kind"])) for target in data["targets"])
    found = Files(**{**known, "targets": targets})
    return replace(found, policy=FilePolicy(found.policy), undeclared=Undeclared(found.undeclared), audit=False)
