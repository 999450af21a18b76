"""How a job is named for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def wildcards_in_words(wildcards: Mapping[str, str]) -> str:
    """``sample=A region=1``, as the commands take them; "" if there are none."""
    return " ".join(f"{name}={value}" for name, value in wildcards.items())


def job_in_words(record: Mapping[str, Any]) -> str:
    """``call sample=A`` of an attempt's record."""
    return f"{record['rule']} {wildcards_in_words(record['wildcards'])}".rstrip()
