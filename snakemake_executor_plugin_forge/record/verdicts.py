"""Verdicts as records have them, made verdicts again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..model import Outcome, Usage, Verdict
from .jsonfile import load
from .layout import STDERR, VERDICT

_TAIL_BYTES = 8192


def read_verdict(directory: str) -> Verdict | None:
    """That of an attempt, from its record; None if it has none."""
    record = load(f"{directory}/{VERDICT}")
    return None if record is None else verdict_of(record, directory)


def was_discarded(directory: str) -> bool:
    """Whether what an attempt had staged was given up."""
    return bool((load(f"{directory}/{VERDICT}") or {}).get("discarded"))


def verdict_of(record: Mapping[str, Any], directory: str) -> Verdict:
    """A verdict from its JSON, as far as that goes."""
    usage = {key: value for key, value in record.get("usage", {}).items() if key in Usage.__slots__}
    return Verdict(
        outcome=Outcome(record.get("outcome", "lost")),
        reason=str(record.get("reason", "")),
        exit_code=record.get("exit_code"),
        signal=record.get("signal"),
        usage=Usage(**usage),
        started=str(record.get("started", "")),
        seconds=float(record.get("seconds", 0.0)),
        notes=tuple(record.get("notes", ())),
        stderr_tail=_tail(f"{directory}/{STDERR}"),
        directory=directory,
        remedy=str(record.get("remedy", "")),
        undeclared_writes=tuple(record.get("undeclared_writes", ())),
        undeclared_reads=None if record.get("undeclared_reads") is None else tuple(record["undeclared_reads"]),
        evidence=dict(record.get("evidence", {})),
        staged=bool(record.get("staged")),
    )


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
