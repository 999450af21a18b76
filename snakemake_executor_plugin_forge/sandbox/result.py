"""The result that the first process of a job leaves in a pipe: one line of JSON after whatever user code has written.

That process has run user code, so anything may be in the pipe. :func:`read_result` takes only what has the right kind
and a plausible size; the rest is ignored, and ``nonsense`` says that there was something.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..record.jsonfile import parse

MOST_BYTES = 1 << 20
"""A longer result is nonsense; of more bytes in the pipe the last ones count."""

_LINES = 100  # the result is sought in that many lines from the end
_MOST = 2.0**62
_MOST_CODE = 1 << 31
_UNKNOWN_CODE = 255  # what a shell makes of an exit code that is no number of a process
_SIGNALS = range(1, 65)
_KEYS = {"exit_code", "signal", "setup_error"}


class Result(NamedTuple):
    """The statement of a job's first process about its end."""

    ended: bool = False  # whether it has said how it ended
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    summary: str | None = None
    setup_error: str | None = None
    children: tuple[float, ...] | None = None  # peak of the largest one in KiB, blocks read, blocks written
    measured: tuple[float, ...] | None = None  # see plugin/run_wrapper.py
    nonsense: bool = False  # whether there was anything else

    @property
    def failed(self) -> bool:
        """Whether the job has done its work without success."""
        return bool(self.exit_code or self.signal or self.error or self.setup_error)


def as_line(result: Mapping[str, object]) -> bytes:
    """Return a result as a line of its own, whatever has been written before it."""
    text = _plain(result)
    return f"\n{json.dumps(result) if text is None else text}\n".encode()


def _plain(result: Mapping[str, object]) -> str | None:
    """Return a result of numbers in JSON, or None: ``json`` makes an encoder, which takes pages that a fork copies."""
    words = []
    for name, value in result.items():
        if value is None:
            words.append(f'"{name}": null')
        elif type(value) is int:
            words.append(f'"{name}": {value}')
        elif type(value) is tuple and {*map(type, value)} == {int}:
            words.append(f'"{name}": {[*value]}')
        else:
            return None
    return f"{{{', '.join(words)}}}"


def read_result(data: bytes) -> Result:
    """Return the last result in ``data``, or an empty one."""
    lines = [line for line in data.rsplit(b"\n", _LINES) if line]
    for number, line in enumerate(reversed(lines)):
        if len(line) > MOST_BYTES or not line.startswith(b"{"):
            continue
        try:
            found = parse(line.decode())
        except ValueError:
            continue
        if isinstance(found, dict) and found.keys() & _KEYS:
            return _result(found, nonsense=number > 0 or len(lines) > 1)
    return Result(nonsense=bool(lines))


def _result(found: Mapping[str, Any], *, nonsense: bool) -> Result:
    code, number = found.get("exit_code"), found.get("signal")
    known_signal = isinstance(number, int) and number is not True and number in _SIGNALS
    known_code = isinstance(code, int) and not isinstance(code, bool) and abs(code) < _MOST_CODE
    wrong_code = not known_code and not known_signal and "exit_code" in found
    if not known_code:
        code = _UNKNOWN_CODE if wrong_code else None
    return Result(
        ended="exit_code" in found or known_signal,
        exit_code=code,
        signal=number if known_signal else None,
        error=_text(found.get("error")),
        summary=_text(found.get("summary")),
        setup_error=_text(found.get("setup_error")),
        children=_numbers(found.get("children"), 3),
        measured=_numbers(found.get("measured"), 5),
        nonsense=nonsense or wrong_code or (number is not None and not known_signal),
    )


def _text(value: object) -> str | None:
    """Return a text without half surrogates, which no file and no terminal takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and value else None


def _numbers(value: object, count: int) -> tuple[float, ...] | None:
    if not isinstance(value, list) or len(value) != count:
        return None
    plausible = all(isinstance(number, int | float) and 0 <= number < _MOST for number in value)
    return tuple(value) if plausible else None
