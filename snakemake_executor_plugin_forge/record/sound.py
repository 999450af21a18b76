"""Records as commands can work with them, whatever a job, a full disk or an editor has made of the files.

A value that Forge cannot have written is replaced by a neutral one, and its key is named in ``damaged``. Keys that this
version does not know stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from ..spec.verdict import Outcome, Usage

DAMAGED = "damaged"
"""The key of a record that lists what was replaced in it."""

_MOST = 2**62  # SQLite has 64 bits
_MOST_FILE_TIME = 2**94  # nanoseconds: seconds have 64 bits
_EPOCH = "1970-01-01T00:00:00+00:00"
_YEARS = range(1970, 3000)
_MOST_SECONDS = 1e10
_MOST_CPUS = 1 << 16
_SHOWN = 5  # damaged keys in a sentence


class Shape(NamedTuple):
    """The type and range that a value must have."""

    read: Callable[[Any, str, list[str]], Any]
    """Returns a sound value; adds the path of each wrong one to the list. It raises TypeError if all of it is wrong."""
    fits: Callable[[Any], bool]  # whether that would return the value as it is; much faster
    default: Any  # for a wrong or missing value


def _kind(fits: Callable[[Any], bool], default: Any) -> Shape:
    def read(value: Any, *_: object) -> Any:
        if not fits(value):
            raise TypeError
        return value

    return Shape(read, fits, default)


def _is_number(value: object, least: float = 0) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < _MOST


def _is_time(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return False
    return found.tzinfo is not None and found.year in _YEARS


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _null_or(shape: Shape) -> Shape:
    return Shape(
        lambda value, at, wrong: None if value is None else shape.read(value, at, wrong),
        lambda value: value is None or shape.fits(value),
        None,
    )


def _member(shape: Shape, value: Any, at: str, wrong: list[str]) -> Any:
    try:
        return shape.read(value, at, wrong)
    except TypeError:
        wrong.append(at)
        return shape.default


def _list_of(shape: Shape) -> Shape:
    def read(value: Any, at: str, wrong: list[str]) -> list[Any]:
        if not isinstance(value, list):
            raise TypeError
        return [_member(shape, item, f"{at}.{number}", wrong) for number, item in enumerate(value)]

    return Shape(read, lambda value: isinstance(value, list) and all(map(shape.fits, value)), ())


def _map_of(shape: Shape) -> Shape:
    def read(value: Any, at: str, wrong: list[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError
        names = {key if _is_text(key) else key.encode("utf-8", "replace").decode(): key for key in value}
        return {name: _member(shape, value[key], f"{at}.{name}", wrong) for name, key in names.items()}

    def fits(value: Any) -> bool:
        return isinstance(value, dict) and all(map(_is_text, value)) and all(map(shape.fits, value.values()))

    return Shape(read, fits, {})


def _object(fields: Mapping[str, Shape], needed: Mapping[str, Any] | None = None) -> Shape:
    """An object with some known keys, of which those in ``needed`` get a value if they are missing."""
    missing = {name: fields[name].default for name in fields} if needed is None else dict(needed)

    def read(value: Any, at: str, wrong: list[str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError
        known = {
            name: _member(shape, value[name], f"{at}.{name}" if at else name, wrong)
            for name, shape in fields.items()
            if name in value
        }
        return {**value, **known, **{name: default for name, default in missing.items() if name not in value}}

    def fits(value: Any) -> bool:
        if not isinstance(value, dict) or not missing.keys() <= value.keys():
            return False
        return all(shape.fits(value[name]) for name, shape in fields.items() if name in value)

    return Shape(read, fits, missing)


_ANY = _kind(lambda _: True, None)
_TEXT = _kind(_is_text, "")
_PATH = _kind(lambda value: _is_text(value) and "\0" not in value, "")
_PATHS = _list_of(_PATH)
_TIME = _kind(_is_time, _EPOCH)
_NUMBER = _kind(_is_number, 0)
_COUNT = _kind(lambda value: isinstance(value, int) and _is_number(value), 0)
_CODE = _kind(lambda value: isinstance(value, int) and _is_number(value, -_MOST), None)
# A job can give a file any time that its file system takes: XFS until 2486, Btrfs and ZFS much longer; not in an index.
_FILE_TIME = _kind(lambda value: type(value) is int and abs(value) < _MOST_FILE_TIME, 0)
_FLAG = _kind(lambda value: isinstance(value, bool), False)
_TEXTS = _list_of(_TEXT)
_OUTCOMES = frozenset((*map(str, Outcome), "running"))

_CPUS = _kind(lambda value: isinstance(value, int) and 0 <= value < _MOST_CPUS, 1)
_SECONDS = _kind(lambda value: _is_number(value) and value < _MOST_SECONDS, 0.0)
_USAGE_FIELDS = {name: _NUMBER if getattr(Usage(), name) is not None else _null_or(_NUMBER) for name in Usage.__slots__}
_USAGE = _object(_USAGE_FIELDS)
_LIMITS = _object({
    **dict.fromkeys(("memory_bytes", "seconds", "disk_bytes", "pids"), _null_or(_NUMBER)),
    "cpus": _CPUS,
    "gpus": _list_of(_COUNT),
})  # fmt: skip
_ISOLATION = _object({
    **dict.fromkeys(("limits", "files", "network"), _TEXT), "mechanisms": _TEXTS, "not_enforced": _TEXTS,
})  # fmt: skip
_OUTPUT = _object(
    {"path": _PATH, "kind": _TEXT, "bytes": _COUNT, "mtime_ns": _null_or(_FILE_TIME), "checksum": _null_or(_TEXT),
     "covers": _null_or(_TEXT), "temporary": _FLAG}
)  # fmt: skip
_ATTEMPT = {
    **dict.fromkeys(("rule", "runtime"), _TEXT),
    "backend": _kind(_is_text, "local"),
    "wildcards": _map_of(_TEXT),
    "attempt": _kind(lambda value: isinstance(value, int) and _is_number(value), 1),
    "retry": _COUNT,
    "retry_of": _null_or(_TEXT),
    "submitted": _kind(lambda value: value == "" or _is_time(value), ""),
    "declared_at": _TEXT,
    "by_default": _TEXTS,
    "threads_asked": _null_or(_CPUS),
    "slurm_job": _null_or(_TEXT),
    "limits": _LIMITS,
    "isolation": _ISOLATION,
}
_OPTIONAL = ("happened", "remedy", "how", "cause", "ended_by", "error", "outputs", "evidence", "refusals", "directory")
_VERDICT_FIELDS = {
    **_ATTEMPT,
    **dict.fromkeys(("reason", "happened", "remedy", "how", "directory"), _TEXT),
    **dict.fromkeys(("cause", "ended_by", "error", "discarded"), _null_or(_TEXT)),
    **dict.fromkeys(("exit_code", "signal"), _null_or(_CODE)),
    **dict.fromkeys(("notes", "undeclared_writes"), _TEXTS),
    "adopted": _null_or(_TEXT),
    "undeclared_reads": _null_or(_TEXTS),
    "outcome": _kind(lambda value: isinstance(value, str) and value in _OUTCOMES, "lost"),
    "started": _TIME,
    "seconds": _SECONDS,
    "usage": Shape(
        lambda value, at, wrong: _USAGE.read(value, at, wrong) if value != {} else {},
        lambda value: value == {} or _USAGE.fits(value),
        {},
    ),
    "outputs": _list_of(_OUTPUT),
    "evidence": _map_of(_ANY),
    "refusals": _list_of(_object(dict.fromkeys(("kind", "subject", "place"), _TEXT) | {"error": _COUNT})),
    "staged": _FLAG,
}
_VERDICT = _object(_VERDICT_FIELDS, {n: shape.default for n, shape in _VERDICT_FIELDS.items() if n not in _OPTIONAL})
_PROCESS = _object({"pid": _COUNT, "start_time": _COUNT})
_SPEC = _object({
    **_ATTEMPT,
    **dict.fromkeys(("name", "how", "cpu_mode"), _TEXT),
    "workdir": _PATH,
    **dict.fromkeys(("command", "runtime_id"), _null_or(_TEXT)),
    **dict.fromkeys(("inputs", "outputs", "logs", "layers"), _PATHS),
    "scratch_base": _PATH,
    "environment": _map_of(_TEXT),
    "created": _TIME,
    "process": _null_or(_PROCESS),
})  # fmt: skip
_PLANNED = _object({"jobs": _COUNT, "threads": _COUNT, "after": _TEXTS, "taken_over": _COUNT})
_RUN = _object({
    **dict.fromkeys(("run", "boot_id", "host", "isolation", "user"), _TEXT),
    "backend": _kind(_is_text, "local"),
    **dict.fromkeys(("pid", "start_time"), _COUNT),
    "pid_namespace": _null_or(_COUNT),
    **dict.fromkeys(("workdir", "cgroup"), _PATH),
    "memory_bytes": _null_or(_NUMBER),
    "command": _TEXTS,
    "runtimes": _map_of(_ANY),
    "versions": _map_of(_TEXT),
    "workflow": _object({"snakefile": _PATH, "sources": _PATHS, "configfiles": _PATHS, "config": _map_of(_ANY)}),
    "started": _TIME,
    "ended": _null_or(_TEXT),
    "restart": _null_or(_object({"python": _PATH, "arguments": _PATHS, "directory": _null_or(_PATH)})),
    "adopted": _list_of(_ANY),
    "cores": _null_or(_COUNT),
    "plan": _map_of(_PLANNED),
    "declared_dead": _FLAG,
})  # fmt: skip


def damage(record: Mapping[str, Any], path: str) -> str:
    """Return a sentence that names the file and what was replaced; "" for a sound record."""
    keys = record.get(DAMAGED)
    if not keys:
        return ""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{path} is damaged: its {', '.join(keys[:_SHOWN])}{more} cannot be what Forge wrote, and is ignored"


def verdict(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``verdict.json``."""
    return _sound(_VERDICT, data)


def spec(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``spec.json``."""
    return _sound(_SPEC, data)


def run(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``run.json``."""
    return _sound(_RUN, data)


def _sound(shape: Shape, data: Mapping[str, Any]) -> dict[str, Any]:
    if DAMAGED not in data and shape.fits(data):
        return dict(data)
    wrong: list[str] = []
    found: dict[str, Any] = shape.read({key: value for key, value in data.items() if key != DAMAGED}, "", wrong)
    return found | {DAMAGED: wrong} if wrong else found
