"""The job directory: the files of one attempt. Format: docs/reference/record.md.

``spec.json`` and ``command.sh`` are written while the job starts, ``verdict.json`` is renamed into place at the end
and is the only end marker.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from datetime import UTC, datetime

from ..model import RECORD_SCHEMA, LaunchSpec, Verdict

STDOUT, STDERR = "stdout.log", "stderr.log"
SPEC, VERDICT, EVENTS, COMMAND = "spec.json", "verdict.json", "events.jsonl", "command.sh"


def now() -> str:
    """The time as in all records: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat()


class JobDirectory:
    """Writes the record of one attempt."""

    def __init__(self, spec: LaunchSpec) -> None:
        """Make the directory; the streams are open for the supervisor.

        Raises:
            OSError: if the directory cannot be written.

        """
        self.path = spec.job_dir
        self._spec = spec
        self.started = now()
        self._begin = time.monotonic()
        os.makedirs(self.path)
        flags = os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        self.stdout = os.open(f"{self.path}/{STDOUT}", flags, 0o644)
        try:
            self.stderr = os.open(f"{self.path}/{STDERR}", flags, 0o644)
        except OSError:
            os.close(self.stdout)
            raise
        self._events = [self._event("created")]

    def describe(self) -> None:
        """Write ``spec.json`` and ``command.sh``.

        Raises:
            OSError: if they cannot be written.

        """
        _write(f"{self.path}/{SPEC}", json.dumps(self._spec_json(), ensure_ascii=False))
        _write(f"{self.path}/{COMMAND}", _script(self._spec), mode=0o755)

    def _spec_json(self) -> dict[str, object]:
        spec = self._spec
        return {
            "schema": RECORD_SCHEMA,
            "name": spec.name,
            "rule": spec.rule,
            "wildcards": dict(spec.wildcards),
            "attempt": spec.attempt,
            "command": spec.command,
            "how": spec.how,
            "created": self.started,
            "limits": spec.limits.as_json(),
            "cpu_mode": str(spec.cpu_mode),
            "isolation": spec.isolation.as_json(),
            "environment": dict(spec.environment),
            "runtime": spec.runtime,
            "backend": spec.backend,
            "workdir": spec.workdir,
            "scratch_base": spec.scratch_base,
            "inputs": list(spec.inputs),
            "outputs": list(spec.outputs),
        }

    def _event(self, name: str, **data: object) -> str:
        seconds = round(time.monotonic() - self._begin, 6)
        return json.dumps({"schema": RECORD_SCHEMA, "event": name, "seconds": seconds, **data})

    def event(self, name: str, **data: object) -> None:
        """Note what happened, with the time since the start. Kept in memory until :meth:`finish`."""
        self._events.append(self._event(name, **data))

    def append_event(self, name: str, **data: object) -> None:
        """Note what happened after :meth:`finish`."""
        with open(f"{self.path}/{EVENTS}", "a", encoding="utf-8") as file:
            file.write(self._event(name, **data) + "\n")

    def seconds(self) -> float:
        """Time since the directory was made."""
        return time.monotonic() - self._begin

    def finish(self, verdict: Verdict) -> None:
        """Write the events, then ``verdict.json`` in one step.

        Raises:
            OSError: if the disk is full, for example; no half verdict is left then.

        """
        self.event("ended", outcome=str(verdict.outcome))
        _write(f"{self.path}/{EVENTS}", "\n".join(self._events) + "\n")
        write_verdict(self._spec, verdict)

    def close(self) -> None:
        """Close the streams."""
        os.close(self.stdout)
        os.close(self.stderr)


def write_verdict(spec: LaunchSpec, verdict: Verdict) -> None:
    """Rename ``verdict.json`` into place; also for an attempt whose supervisor died."""
    temporary = f"{spec.job_dir}/.{VERDICT}.{os.getpid()}"
    _write(temporary, json.dumps(verdict_json(spec, verdict), ensure_ascii=False))
    os.rename(temporary, f"{spec.job_dir}/{VERDICT}")


def verdict_json(spec: LaunchSpec, verdict: Verdict) -> dict[str, object]:
    """The object that ``snakemake-forge jobs --json`` lists, and more."""
    return {
        "schema": RECORD_SCHEMA,
        "rule": spec.rule,
        "wildcards": dict(spec.wildcards),
        "attempt": spec.attempt,
        "outcome": str(verdict.outcome),
        "reason": verdict.reason,
        "remedy": verdict.remedy,
        "evidence": dict(verdict.evidence),
        "exit_code": verdict.exit_code,
        "signal": verdict.signal,
        "started": verdict.started,
        "seconds": round(verdict.seconds, 6),
        "limits": spec.limits.as_json(),
        "usage": verdict.usage.as_json(),
        "isolation": spec.isolation.as_json(),
        "runtime": spec.runtime,
        "backend": spec.backend,
        "how": spec.how,
        "undeclared_writes": [],
        "undeclared_reads": None,
        "notes": list(verdict.notes),
        "directory": spec.job_dir,
    }


def _script(spec: LaunchSpec) -> str:
    variables = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in spec.environment.items())
    limits = spec.limits
    return (
        f"#!/usr/bin/env bash\n# Rule {spec.rule}, attempt {spec.attempt}: the same command by hand, "
        f"without limits and sandbox.\n# Under Forge: memory {limits.memory_bytes or 'of the run'}, "
        f"{limits.cpus} CPU(s), {limits.wall_seconds or 'unlimited'} s.\n"
        f"cd {shlex.quote(spec.workdir)} || exit\n{variables}set -euo pipefail\n{spec.by_hand}\n"
    )


def _write(path: str, text: str, mode: int = 0o644) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        data = memoryview(text.encode("utf-8", "surrogateescape"))
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
