"""Text that jobs can have made (names, messages, streams) for terminals, logs, pages and Python source. Pure.

One function for each use: :func:`printable` and :func:`shell_words` for what Forge says, :func:`terminal_text` for what
a job says, :func:`python_string` for lines to paste into a Snakefile.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

# ECMA-48: control sequences; control strings (titles, clipboards) with their end; other sequences of two characters.
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[P\]X^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]+[0-~]|\x1b[0-OQ-WYZ`-~]"
)
_COLOUR_OR_ERASE = re.compile(r"\x1b\[[0-9;:]*m|\x1b\[[0-2]?K")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_UNFINISHED = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[P\]X^_][^\x07\x1b]*\x1b?|[ -/]*)?\Z")
_LONGEST_SEQUENCE = 4096

SHOWN = 5
"""The most names that a message has; the record has all of them."""
LONGEST_NAME = 400
"""Characters of a name that a message shows."""


def printable(text: str, keep: str = "") -> str:
    r"""Return a text without control characters and bytes that are no UTF-8: ``\n``, ``\x1b``, ``\xff`` stand for them.

    Args:
        keep: control characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:  # a byte of a name: surrogateescape in Python's codecs
        return f"\\x{number - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def without_escapes(text: str) -> str:
    """Return a text without colours, cursor movements, titles and all control characters but tabs and new lines."""
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


def terminal_text(text: str) -> str:
    """Return what a job has written for a terminal: colours and progress bars stay, nothing reaches beyond its line."""
    parts, end = [], 0
    for found in _SEQUENCE.finditer(text):
        parts.append(printable(text[end : found.start()], "\n\t\r\b"))
        parts.append(found[0] if _COLOUR_OR_ERASE.fullmatch(found[0]) else "")
        end = found.end()
    return "".join((*parts, printable(text[end:], "\n\t\r\b")))


def terminal_bytes(data: bytes, *, last: bool = False) -> tuple[bytes, bytes]:
    """Return :func:`terminal_text` of a part of a stream, and the end that cannot be judged before more has come.

    Args:
        last: whether nothing more comes.
    """
    rest = b"" if last else _unfinished(data)
    text = data[: len(data) - len(rest)].decode("utf-8", "surrogateescape")
    return terminal_text(text).encode("utf-8", "surrogateescape"), rest


def _unfinished(data: bytes) -> bytes:
    """Return the end of the data that may be the beginning of a sequence, or of a character of several bytes."""
    if (sequence := _UNFINISHED.search(data[-_LONGEST_SEQUENCE:])) is not None:
        return sequence[0]
    for length in range(1, min(3, len(data)) + 1):
        byte = data[-length]
        if byte >= 0xC0:
            wanted = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[-length:] if length < wanted else b""
        if byte < 0x80:
            return b""
    return b""


def python_string(text: str) -> str:
    r"""Return a text as a printable literal of Python, on one line: ``"a\n\udcff"``; YAML reads it, too."""
    return '"' + "".join(_in_literal(char) for char in text) + '"'


def _in_literal(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")


def json_text(text: str) -> str:
    r"""Return JSON in which all that is not printable is escaped: ``\u009b``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _in_json(char) for char in text)


def _in_json(char: str) -> str:
    data = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[place]:02x}{data[place + 1]:02x}" for place in range(0, len(data), 2))


def shell_words(words: Iterable[str]) -> str:
    r"""Return words to paste into a shell, as shlex.join() does; those that cannot be printed as ``$'\x1b'``."""
    return " ".join(shlex.quote(word) if word.isprintable() else _dollar_quoted(word) for word in words)


def _dollar_quoted(word: str) -> str:
    data = word.encode("utf-8", "surrogateescape")
    plain = "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in data)
    return f"$'{plain}'"


def few(names: Sequence[str], separator: str = ", ") -> str:
    """Name the first ones, and say how many there are."""
    shown = separator.join(_shortened(printable(name)) for name in names[:SHOWN])
    return shown + (f"{separator}… ({len(names)} in all)" if len(names) > SHOWN else "")


def _shortened(name: str) -> str:
    """Return the beginning and the end of a very long name, as of thousands of directories in each other."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 :]}"
