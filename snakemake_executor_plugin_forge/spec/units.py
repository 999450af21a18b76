"""Sizes, times and shares: text to numbers and back."""

from __future__ import annotations

import math
import re

from .errors import UsageError

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgtp]?i?b?)", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_TIME = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>s|sec|m|min|h|d)?", re.IGNORECASE)
_MOST_BYTES = 1 << 60
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

MEBIBYTE = 1024 * 1024


def parse_bytes(text: str, where: str) -> int:
    """Read "4GiB", "500MB", "1.5g" or plain bytes; a decimal unit (MB) is 1000-based, "MiB" and "m" are 1024-based.

    Raises:
        UsageError: if ``text`` is not a size above zero; ``where`` names the flag or key.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{where}={text}: not a size; write it like 4GiB, 500MB or 1073741824.")
    unit = match["unit"].lower()
    base = 1000 if unit.endswith("b") and "i" not in unit and unit != "b" else 1024
    number = float(match["number"]) * base ** _POWER[unit.rstrip("b").rstrip("i")]
    if number < 1:
        raise UsageError(f"{where}={text}: must be above zero.")
    if number >= _MOST_BYTES:
        raise UsageError(f"{where}={text}: no host has that much.")
    return int(number)


def parse_seconds(text: str, where: str) -> float:
    """Read "90", "90s", "30m", "24h" or "2d" as seconds.

    Raises:
        UsageError: if ``text`` is not a time above zero.
    """
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{where}={text}: not a time; write it like 90s, 30m, 24h or 2d.")
    seconds = float(match["number"]) * _SECONDS[(match["unit"] or "s").lower()]
    if not 0 < seconds < math.inf:
        raise UsageError(f"{where}={text}: must be above zero.")
    return seconds


def parse_share(text: str, whole_bytes: int, where: str) -> int:
    """Read a size, or a percentage of ``whole_bytes``, as bytes.

    Raises:
        UsageError: for any other text, and for a percentage outside 1 to 100.
    """
    stripped = text.strip()
    if not stripped.endswith("%"):
        return parse_bytes(stripped, where)
    try:
        percent = float(stripped[:-1])
    except ValueError:
        raise UsageError(f"{where}={text}: not a percentage; write it like 90%.") from None
    if not 1 <= percent <= 100:
        raise UsageError(f"{where}={text}: a percentage must be between 1% and 100%.")
    return int(whole_bytes * percent / 100)


def show_bytes(number: float) -> str:
    """Bytes for people: ``104857600`` is "100.0 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def show_seconds(seconds: float) -> str:
    """Seconds for people: "0.25 s", "12.5 s", "30 min", "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest:02d} s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
