"""Paths of one job as patterns for its rule. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping


def with_wildcards(path: str, wildcards: Mapping[str, str]) -> str:
    """Return a path with wildcards instead of their values: ``sorted/A.bai`` becomes ``sorted/{sample}.bai``.

    Formatting the result with the wildcards gives the path back. A value counts where it is a whole word; a number also
    beside letters (``chunk7``), if that is the only place. Longer values count first; of two wildcards with the same
    value, the one that the rule names first.
    """
    return "".join("{" + part + "}" if is_name else _escaped(part) for part, is_name in _parts(path, wildcards))


def can_be_declared(path: str) -> bool:
    """Return whether a rule can have an output of that name: braces are wildcards there, and have no escape."""
    return path.isprintable() and not {"{", "}"} & set(path)


def lacking(path: str, wildcards: Mapping[str, str]) -> tuple[str, ...]:
    """Return the wildcards that are not in a path: all outputs of a rule need all of them."""
    found = {part for part, is_name in _parts(path, wildcards) if is_name}
    return tuple(name for name in wildcards if name not in found)


def without_wildcards(path: str, wildcards: Mapping[str, str]) -> str:
    """Return the part of a path, in whole names, that is the same for all jobs of the rule."""
    first, *more = [part for part, _ in _parts(path, wildcards)]
    if not more:
        return path
    return first.rpartition("/")[0]


def _parts(path: str, wildcards: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Return a path in parts: text, or the name of a wildcard. The first is text."""
    names: dict[str, str] = {}
    for name, value in wildcards.items():
        if value:
            names.setdefault(value, name)
    if not names:
        return [(path, False)]
    words = "|".join(re.escape(value) for value in sorted(names, key=len, reverse=True))
    parts = list(_split(path, rf"(?<![A-Za-z0-9])({words})(?![A-Za-z0-9])", names))
    for value, name in names.items():
        number = rf"(?<![0-9])({re.escape(value)})(?![0-9])"
        places = [place for place, (part, is_name) in enumerate(parts) if not is_name and re.search(number, part)]
        if not value.isdecimal() or (name, True) in parts or len(places) != 1:
            continue
        (place,) = places
        if len(re.findall(number, parts[place][0])) == 1:
            parts[place : place + 1] = _split(parts[place][0], number, names)
    return parts


def _split(text: str, pattern: str, names: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    for place, part in enumerate(re.split(pattern, text)):
        yield (names[part], True) if place % 2 else (part, False)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
