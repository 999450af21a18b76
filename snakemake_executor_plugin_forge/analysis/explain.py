"""Five lines that explain the end of an attempt, from its record and the end of its stderr. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..record.jsonfile import COMMAND, STDERR, STDOUT
from ..spec.printable import few, printable, shell_words, without_escapes
from ..spec.units import MEBIBYTE, show_bytes, show_seconds
from ..spec.verdict import Cause
from ..spec.wildcards import with_wildcards

Record = Mapping[str, Any]

_TELLING = re.compile(
    r"\berror\b|exception|\w(?:Error|Exception|Exit)\b|\bfatal|\bfail(?:ed|ure)\b|cannot|can't|could not|not found|"
    r"no such file|denied|\bkilled\b|\babort|segmentation|\bpanic|out of memory|no space left|\binvalid\b|refused",
    re.IGNORECASE,
)
_LINES = 3
_LINE_LENGTH = 240
_TRACEBACK_LINES = 8
_JOBS = 5  # of a group of failures, by name
_FIGURES = re.compile(r"\d+(?:[.:]\d+)*")
MOST_FAILURES = 10
"""The most jobs that the summary of a run explains."""
_WRAPPED = re.compile(
    r"^\s*File \"[^\n]*|^[^\n]*\bCalledProcessError\b[^\n]*|^\s*raise \w[^\n]*|^RuleException:[^\n]*|^Traceback [^\n]*|"
    r"^[^\n]*\bsnakemake_executor_plugin_forge\b[^\n]*|^[^\n]*\bforge-job\b[^\n]*|"
    r"^During handling of the above exception, [^\n]*|^The above exception was the direct cause [^\n]*",
    re.MULTILINE,
)
"""Lines of Snakemake, Forge and Python around an error: they say that something failed, and never why."""
_IN_STDERR = (Cause.SIGNAL, Cause.EXIT_CODE, Cause.EXCEPTION, Cause.ERROR)
"""Causes that only the job itself can explain."""
UNFIT = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""Errors about a record that lacks what was expected: another version, Slurm, or a job has written it."""
_GROWTH = 2  # the factor by which the advice raises a limit
_NEARLY_ALL = 0.9  # of the memory of a run: a job that needed more will hardly do with all of it


@dataclass(frozen=True, slots=True)
class Told:
    """The end of what a job has said about its failure."""

    text: str = ""
    log: str = ""  # the file of the rule's log: that says it; "" is stderr

    @property
    def source(self) -> str:
        """The name of the place for people."""
        return f"log {self.log}" if self.log else "stderr"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The five lines, without their names."""

    happened: str
    evidence: str
    stderr: str
    change: str
    files: str
    log: str = ""  # the file of the rule's log: that says what stands under stderr

    def fields(self) -> tuple[tuple[str, str], ...]:
        """Return name and text of each line."""
        said = ("log", f"{self.log}: {self.stderr}") if self.log else ("stderr", self.stderr)
        return (
            ("happened", self.happened),
            ("evidence", self.evidence),
            said,
            ("change", self.change),
            ("files", self.files),
        )


def explain(record: Record, told: Told) -> Explanation:
    """Return the answer to "why".

    Args:
        record: the object in ``verdict.json``. ``limits`` and ``usage`` may be missing. ``run_memory_bytes``, if there
            is one: what the jobs of the run could use together. ``lost_streams``: why its streams cannot be read.
        told: what the job has said about its failure.
    """
    remedy = str(record.get("remedy") or "")
    traceback = _traceback(record, told.text)
    lines = traceback or telling_lines(told.text)
    source = f"the cause that {'the traceback' if traceback else told.source} names"
    lost = record.get("lost_streams")
    source = source if lines else "the cause, which is not on record" if lost else _silent(record)
    names = (STDERR, STDOUT, COMMAND, "verdict.json")
    return Explanation(
        happened=f"{job_words(record)}{_place(record)}: {record.get('happened') or record['reason']}",
        evidence=_evidence(record),
        stderr=" | ".join(lines) or lost or "empty, as is any log: of the rule",
        change=_change(record, remedy, record.get("evidence") or {}, source),
        files=f"{record['directory']}/{{{','.join(names)}}}",
        log="" if traceback or not lines else told.log,
    )


def summary_after_failure(failures: Sequence[Record], unlisted: int = 0, directory: str = "") -> str:
    """Return the end of Snakemake's output after a failed run: five lines for each job, and what to type next.

    Args:
        failures: records, each with ``told``.
        unlisted: the number of failed jobs without a record here.
        directory: the working directory, if the user is in another one.
    """
    where = f" --directory {shell_words([directory])}" if directory else ""
    blocks = []
    groups = alike(failures)
    for group in groups[:MOST_FAILURES]:
        record = group[0]
        fields = explain(record, record.get("told", Told())).fields()
        jobs = f"jobs      {len(group)} × {record['rule']}, alike{_jobs(group)}" if len(group) > 1 else ""
        lines = [jobs, *(f"{name:<9} {text}" for name, text in fields)]
        blocks.append("\n".join(line for line in lines if line))
    more = sum(map(len, groups[MOST_FAILURES:])) + unlisted
    if more > 0:
        blocks.append(f"{more} more job(s) failed: snakemake-forge jobs --failed --run -1{where}")
    which = _words(groups[0][0]) if len(groups) == 1 else "RULE WILDCARD=VALUE"
    again = f"; these lines again: snakemake-forge why {which}{where}" if groups else ""
    blocks.append(f"next      after the change: snakemake-forge resume{where}{again}")
    count = len(failures) + unlisted
    return printable(f"Forge: {count} job(s) failed.\n\n" + "\n\n".join(blocks) + "\n", keep="\n")


def alike(failures: Sequence[Record]) -> list[list[Record]]:
    """Put failures together that differ in the values of wildcards, in sizes and times only; the first ones first."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in failures:
        said = [str(record.get("happened") or record.get("reason")), *telling_lines(record.get("told", Told()).text)]
        values = {name: _FIGURES.sub("#", str(value)) for name, value in record["wildcards"].items()}
        values = {name: value for name, value in values.items() if value != "#"}  # "1" also stands in "exit code 1"
        words = (with_wildcards(_FIGURES.sub("#", text), values) for text in said)
        groups.setdefault((str(record["rule"]), str(record["outcome"]), *words), []).append(record)
    return list(groups.values())


def _jobs(group: Sequence[Record]) -> str:
    names = [wildcards_in_words(record["wildcards"]) for record in group if record["wildcards"]]
    more = f" and {len(names) - _JOBS} more" if len(names) > _JOBS else ""
    return (": " if names else "") + ", ".join(names[:_JOBS]) + more


def job_words(record: Record) -> str:
    """Return rule, wildcards and attempt: "call sample=A, attempt 2"."""
    attempt = record.get("attempt", 1)
    again = f", run again with more memory ({record['retry']})" if record.get("retry") else ""
    return _words(record) + (f", attempt {attempt}" if attempt != 1 else "") + again


def _place(record: Record) -> str:
    return f" ({record['declared_at']})" if record.get("declared_at") else ""


def _words(record: Record) -> str:
    return shell_words([str(record["rule"]), *(f"{k}={v}" for k, v in record["wildcards"].items())])


def tells(text: str) -> bool:
    """Whether a line of a text speaks of an error, other than the lines that Snakemake puts around it."""
    return _TELLING.search(_WRAPPED.sub("", text)) is not None


def telling_lines(text: str) -> tuple[str, ...]:
    """Return the last lines that speak of an error, else the last lines; without colours and progress bars.

    A line that ends with a colon only announces the error, as R's "Error in f(x) :": the next line is put to it.
    """
    lines = [without_escapes(part.rpartition("\r")[2] or part).strip() for part in text.split("\n")]
    lines = [" ".join(line.split()) for line in lines if line]
    lines = [line for line in lines if not _WRAPPED.match(line)] or lines
    telling = [
        f"{line} {after}" if line.endswith(":") and after and not _TELLING.search(after) else line
        for line, after in zip(lines, [*lines[1:], ""], strict=False)
        if _TELLING.search(line)
    ]
    unique = list(dict.fromkeys(telling or lines))
    return tuple(line if len(line) <= _LINE_LENGTH else f"{line[:_LINE_LENGTH]}…" for line in unique[-_LINES:])


def _traceback(record: Record, stderr: str) -> tuple[str, ...]:
    """Return the error of a rule's Python code with file and lines, as Snakemake words it; () for other failures."""
    told = record.get("cause") == Cause.EXCEPTION or (record.get("cause") == Cause.REFUSED and not stderr.strip())
    error = record.get("error") if told else None
    lines = [" ".join(line.split()) for line in str(error or "").splitlines()]
    return tuple(line[:_LINE_LENGTH] for line in lines if line and line != "RuleException:")[:_TRACEBACK_LINES]


# -- the evidence ------------------------------------------------------------------------------------------------------


def _evidence(record: Record) -> str:
    facts, parts = record.get("evidence") or {}, []
    special = _EVIDENCE.get(str(record["outcome"]))
    if special is not None and facts:
        try:
            parts += special(facts)
        except UNFIT:
            parts += [f"{name.replace('_', ' ')}: {value}"[:_LINE_LENGTH] for name, value in facts.items() if value]
    elif record.get("exit_code") is not None:
        parts.append(f"exit code {record['exit_code']}")
    if record.get("retry_of"):
        parts.append(f"the attempt before: {record['retry_of']}")
    usage = record.get("usage") or {}
    parts.append(f"ran {show_seconds(record['seconds'])}")
    if record.get("slurm_job"):
        parts.append(f"Slurm job {record['slurm_job']}")
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
    if facts.get("full"):
        return [f"the file system {facts['full']} was full", *_failed_facts(facts)]
    size = show_bytes(facts["largest_bytes"]) if facts.get("largest_bytes") else "the largest"
    total = f"{show_bytes(facts['total_bytes'])} of " if facts.get("total_bytes") else "at the limit of "
    return [
        f"{facts['what']}: {total}{show_bytes(facts['limit_bytes'] or 0)}",
        *([f"{size} in {facts['largest']}"] if facts.get("largest") else []),
    ]


def _failed_facts(facts: Record) -> list[str]:
    code, number = facts.get("exit_code"), facts.get("signal")
    stage = ["before anything of it was run"] if facts.get("stage") == "setup" else []
    files = [f"{what}: {few(facts[what])}" for what in ("missing", "rejected", "changed") if facts.get(what)]
    ending = [f"exit code {code}"] if code is not None else []
    return [*stage, *ending, *([f"signal {number}"] if number else []), *files]


_EVIDENCE: dict[str, Callable[[Record], list[str]]] = {
    "oom": _oom_facts,
    "disk": _disk_facts,
    "failed": _failed_facts,
    "timeout": lambda facts: [f"its limit was {show_seconds(facts['limit_seconds'] or 0)}"],
    "pids": lambda facts: [f"{facts['refused_forks']} forks refused at the limit of {facts['limit']}"],
    "violation": lambda facts: [f"{what.replace('_', ' ')}: {few(paths)}" for what, paths in facts.items() if paths],
    "cancelled": lambda _: [],  # "happened" has it all
}


# -- what to change ----------------------------------------------------------------------------------------------------


def _change(record: Record, remedy: str, facts: Record, else_: str) -> str:
    try:
        return _change_by_facts(record, remedy, facts, else_)
    except UNFIT:
        return _change_by_facts(record, remedy, {}, else_)


def _change_by_facts(record: Record, remedy: str, facts: Record, else_: str) -> str:
    match str(record["outcome"]):
        case "succeeded":
            return "nothing"
        case "running":
            return f"nothing yet: snakemake-forge logs {_words(record)} --follow"
        case "oom" if facts.get("limit_bytes") and facts.get("scope") == "job":
            return _memory(record, facts["limit_bytes"])
        case "oom" if facts.get("scope") == "run":
            return _memory(record, facts["memory_peak_bytes"])
        case "timeout" if facts.get("limit_seconds"):
            return _resource(record, "runtime", facts["limit_seconds"] / 60)
        case "disk" if facts.get("limit_bytes"):
            most = max(facts["limit_bytes"], facts.get("total_bytes") or 0)
            return _resource(record, "disk_mb", most / MEBIBYTE)
        case "pids" if facts.get("limit"):
            return f"snakemake … --forge-pids {facts['limit'] * _GROWTH}"
        case "cancelled" | "lost":
            return "nothing in the rule; to clear up and continue where it ended: snakemake-forge resume"
        case _ if record.get("cause") == Cause.RESOURCES:
            return remedy or f"the resource, in rule {record['rule']}"
        case _:
            return _other(record, remedy, facts, else_)


def _other(record: Record, remedy: str, facts: Record, else_: str) -> str:
    """Return what to change after a failure for which no limit has to be raised."""
    if record.get("cause") == Cause.SIGNAL and facts.get("signal") == "SIGKILL":
        return "nothing, if somebody killed it: no limit of Forge did; to run it again: snakemake-forge resume"
    advice = remedy if remedy and record.get("cause") not in _IN_STDERR else else_
    if advice.endswith(f"/{COMMAND}"):
        return advice
    return f"{advice}; to try it by hand: bash {record['directory']}/{COMMAND}"


def _silent(record: Record) -> str:
    """Return what to change in a job that failed without a word."""
    code = record.get("exit_code")
    nothing = " (grep exits with 1 if it finds nothing)" if code == 1 else ""
    trace = f"; to see which part of it failed: bash -x {record['directory']}/{COMMAND}" if code is not None else ""
    return f"the command, which says nothing{nothing}{trace}"


def _memory(record: Record, now_bytes: float) -> str:
    """Return the line that gives a rule more memory, but never more than a run lets any job ask for."""
    most = record.get("run_memory_bytes") or math.inf
    if now_bytes * _GROWTH <= most:
        return _resource(record, "mem_mb", now_bytes / MEBIBYTE)
    if now_bytes < most * _NEARLY_ALL:
        return _resource(record, "mem_mb", most // MEBIBYTE, growth=1) + "   (all that a run may use here)"
    now = show_bytes(int(most))
    return f"raise --forge-run-memory (now {now}) if the host has more, or give the job less to do at a time"


def _resource(record: Record, name: str, now: float, growth: int = _GROWTH) -> str:
    """Return the line for the rule, and the option with that effect for one run."""
    value = max(1, math.ceil(now * growth))
    rule = record["rule"]
    line = f"in rule {rule}:  resources: {name}={value}   or once: snakemake … --set-resources {rule}:{name}={value}"
    if where := (record.get("evidence") or {}).get("limit_from"):
        return f"{line}   or for all rules without {name}: raise {where}"
    by_default = name in (record.get("by_default") or ())
    return line + ("   or for all rules: --forge-default-resources schedule" if by_default else "")


def wildcards_in_words(wildcards: Mapping[str, str]) -> str:
    """Return ``sample=A region=1``, as the commands take them; "" without wildcards."""
    return " ".join(f"{name}={value}" for name, value in wildcards.items())


def job_in_words(record: Mapping[str, Any]) -> str:
    """Return ``call sample=A`` for an attempt's record."""
    return f"{record['rule']} {wildcards_in_words(record['wildcards'])}".rstrip()
