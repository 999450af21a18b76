"""Why an attempt ended as it did, in five lines: from its record and the end of its stderr. Pure."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..units import MEBIBYTE, show_bytes, show_seconds
from .layout import COMMAND, STDERR, STDOUT

Record = Mapping[str, Any]

_TELLING = re.compile(
    r"\berror\b|exception|\w(?:Error|Exception|Exit)\b|\bfatal|\bfail(?:ed|ure)\b|cannot|can't|could not|not found|"
    r"no such file|denied|\bkilled\b|\babort|segmentation|\bpanic|out of memory|no space left|\binvalid\b|refused",
    re.IGNORECASE,
)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
"""What moves a terminal's cursor or changes its colours (ECMA-48), and other control characters."""
_LINES = 3
_LINE_LENGTH = 240
MOST_FAILURES = 10
"""How many are shown at the end of a run."""
_GROWTH = 2  # what is suggested for a limit that was reached


@dataclass(frozen=True, slots=True)
class Explanation:
    """The five lines, without their names."""

    happened: str
    evidence: str
    stderr: str
    change: str
    files: str

    def fields(self) -> tuple[tuple[str, str], ...]:
        """Name and text of each line."""
        return (
            ("happened", self.happened),
            ("evidence", self.evidence),
            ("stderr", self.stderr),
            ("change", self.change),
            ("files", self.files),
        )


def explain(record: Record, stderr: str) -> Explanation:
    """The answer to "why".

    Args:
        record: as in ``verdict.json``. ``limits`` and ``usage`` may be missing.
        stderr: its end.

    """
    remedy = str(record.get("remedy") or "")
    reason = str(record["reason"]).removesuffix(f"; {remedy}" if remedy else "")
    lines = telling_lines(stderr)
    names = (STDERR, STDOUT, COMMAND, "verdict.json")
    return Explanation(
        happened=f"{job_words(record)}: {reason}",
        evidence=_evidence(record),
        stderr=" | ".join(lines) if lines else "nothing in it, nor in a log: of the rule",
        change=_change(record, remedy),
        files=f"{record['directory']}/{{{','.join(names)}}}",
    )


def summary_after_failure(failures: Sequence[Record], unlisted: int = 0, directory: str = "") -> str:
    """What Snakemake's output ends with after a failed run: the same five lines for each job, and what to type next.

    Args:
        failures: records, each with a ``stderr_tail``.
        unlisted: how many more there were, of which nothing was kept.
        directory: the working directory, if it is not the one that the user is in.

    """
    where = f" --directory {shlex.quote(directory)}" if directory else ""
    blocks = []
    for record in failures[:MOST_FAILURES]:
        lines = [f"{name:<9} {text}" for name, text in explain(record, str(record.get("stderr_tail", ""))).fields()]
        blocks.append("\n".join([*lines, f"next      snakemake-forge why {_words(record)}{where}"]))
    more = len(failures) - MOST_FAILURES + unlisted
    if more > 0:
        blocks.append(f"{more} more job(s) failed: snakemake-forge jobs --failed --last{where}")
    count = len(failures) + unlisted
    return f"Forge: {count} job(s) failed.\n\n" + "\n\n".join(blocks) + "\n"


def job_words(record: Record) -> str:
    """Rule, wildcards and attempt: "call sample=A, attempt 2"."""
    attempt = record.get("attempt", 1)
    again = f", run again with more memory ({record['retry']})" if record.get("retry") else ""
    return _words(record) + (f", attempt {attempt}" if attempt != 1 else "") + again


def _words(record: Record) -> str:
    return shlex.join([str(record["rule"]), *(f"{k}={v}" for k, v in record["wildcards"].items())])


def tells(text: str) -> bool:
    """Whether some line of it speaks of an error."""
    return _TELLING.search(text) is not None


def telling_lines(text: str, most: int = _LINES) -> tuple[str, ...]:
    """The last lines that speak of an error or, if none does, the last lines; without colours and progress bars."""
    lines = [ESCAPES.sub("", part.rpartition("\r")[2] or part).strip() for part in text.split("\n")]
    lines = [" ".join(line.split()) for line in lines if line]
    telling = [line for line in lines if _TELLING.search(line)]
    unique = list(dict.fromkeys(telling or lines))
    return tuple(line if len(line) <= _LINE_LENGTH else f"{line[:_LINE_LENGTH]}…" for line in unique[-most:])


# -- the evidence ------------------------------------------------------------------------------------------------------


def _evidence(record: Record) -> str:
    facts, parts = record.get("evidence") or {}, []
    special = _EVIDENCE.get(str(record["outcome"]))
    if special is not None and facts:
        parts += special(facts)
    elif record.get("exit_code") is not None:
        parts.append(f"exit code {record['exit_code']}")
    if record.get("retry_of"):
        parts.append(f"the attempt before: {record['retry_of']}")
    usage = record.get("usage") or {}
    parts.append(f"ran {show_seconds(record['seconds'])}")
    if usage:
        parts.append(f"{show_seconds(usage['cpu_seconds'])} of CPU")
        if record["outcome"] != "oom":
            limit = (record.get("limits") or {}).get("memory_bytes")
            of_limit = f" of {show_bytes(limit)}" if limit else ""
            parts.append(f"memory {show_bytes(usage['memory_peak_bytes'])}{of_limit}")
    return "; ".join([*parts, *(str(note) for note in record.get("notes") or ())])


def _oom_facts(facts: Record) -> list[str]:
    whose = {"job": "the job", "run": "the run", "outside": str(facts.get("where") or "something around the run")}
    limit = facts.get("limit_bytes")
    peak = show_bytes(facts["memory_peak_bytes"]) + (f" of {show_bytes(limit)}" if limit else "")
    process = f" ({facts['process']})" if facts.get("process") else ""
    return [
        f"{facts['oom_kills']} process(es) killed{process} at the memory limit of {whose.get(facts['scope'], '?')}",
        f"peak {peak}",
    ]


def _disk_facts(facts: Record) -> list[str]:
    size = show_bytes(facts["largest_bytes"]) if facts.get("largest_bytes") else "the largest"
    total = f"{show_bytes(facts['total_bytes'])} of " if facts.get("total_bytes") else "at the limit of "
    return [f"{facts['what']}: {total}{show_bytes(facts['limit_bytes'] or 0)}", f"{size} in {facts.get('largest')}"]


def _failed_facts(facts: Record) -> list[str]:
    code, number = facts.get("exit_code"), facts.get("signal")
    stage = ["before anything of it was run"] if facts.get("stage") == "setup" else []
    files = [f"{what}: {', '.join(facts[what])}" for what in ("missing", "rejected", "changed") if facts.get(what)]
    ending = [f"exit code {code}"] if code is not None else []
    return [*stage, *ending, *([f"signal {number}"] if number else []), *files]


_EVIDENCE: dict[str, Callable[[Record], list[str]]] = {
    "oom": _oom_facts,
    "disk": _disk_facts,
    "failed": _failed_facts,
    "timeout": lambda facts: [f"its limit was {show_seconds(facts['limit_seconds'] or 0)}"],
    "pids": lambda facts: [f"{facts['refused_forks']} forks refused at the limit of {facts['limit']}"],
    "violation": lambda facts: [f"{what.replace('_', ' ')}: {', '.join(paths)}" for what, paths in facts.items()],
    "cancelled": lambda facts: [f"by {facts['by']}"],
}


# -- what to change ----------------------------------------------------------------------------------------------------


def _change(record: Record, remedy: str) -> str:
    facts = record.get("evidence") or {}
    match str(record["outcome"]):
        case "succeeded":
            return "nothing"
        case "running":
            return f"nothing yet: snakemake-forge logs {_words(record)} --follow"
        case "oom" if facts.get("limit_bytes") and facts.get("scope") == "job":
            return _resource(record, "mem_mb", facts["limit_bytes"] / MEBIBYTE)
        case "oom" if facts.get("scope") == "run":
            return _resource(record, "mem_mb", facts["memory_peak_bytes"] / MEBIBYTE)
        case "timeout" if facts.get("limit_seconds"):
            return _resource(record, "runtime", facts["limit_seconds"] / 60)
        case "disk" if facts.get("limit_bytes"):
            most = max(facts["limit_bytes"], facts.get("total_bytes") or 0)
            return _resource(record, "disk_mb", most / MEBIBYTE)
        case "pids" if facts.get("limit"):
            return f"snakemake … --forge-pids {facts['limit'] * _GROWTH}"
        case "cancelled" | "lost":
            return "nothing in the rule; run Snakemake again"
        case _:
            look = remedy if remedy and "snakemake-forge logs" not in remedy else "what stderr says"
            return f"{look}; to try it by hand: bash {record['directory']}/{COMMAND}"


def _resource(record: Record, name: str, now: float) -> str:
    """The line for the rule, and the option that does the same once."""
    value = max(1, math.ceil(now * _GROWTH))
    rule = record["rule"]
    return f"in rule {rule}:  resources: {name}={value}   or once: snakemake … --set-resources {rule}:{name}={value}"
