"""The damage of an environment as values: its kind, the file, the package."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass


class Damage(enum.StrEnum):
    """The kind of damage to a file."""

    MISSING = "is missing"
    CHANGED = "is not as it was installed"
    EDITED = "was changed after its package was installed"
    BROKEN_LINK = "is a link to nothing"
    UNREADABLE = "cannot be read"
    ADDED = "was added by hand"
    LIBRARY = "needs a shared library that is not there"
    INTERPRETER = "needs an interpreter that is not there"
    C_LIBRARY = "is for another C library"
    MACHINE = "is for another processor"
    PACKAGE = "is not the package that was installed"
    REPLACED = "was replaced at its source"


def package_of(record: str) -> str:
    """Name and version of a package, from the path of its record: of conda without ".json", or "….dist-info"."""
    name = os.path.basename(record)
    if name.endswith(".dist-info"):
        return name.removesuffix(".dist-info").replace("-", " ")
    return " ".join(name.rsplit("-", 2)[:2])


@dataclass(frozen=True, slots=True)
class Problem:
    """One damaged file."""

    path: str
    fault: Damage
    detail: str = ""
    package: str = ""  # name and version; empty: unknown

    def __str__(self) -> str:
        package = f" (package {self.package})" if self.package else ""
        return f"{self.path} {self.fault}{': ' if self.detail else ''}{self.detail}{package}"

    @property
    def is_damage(self) -> bool:
        """Whether jobs must not use the environment. What somebody has done on purpose only deserves a message."""
        return self.fault not in (Damage.ADDED, Damage.EDITED, Damage.REPLACED)


@dataclass(frozen=True, slots=True)
class Health:
    """The result of checking an environment."""

    problems: tuple[Problem, ...]
    files: int
    hashed: int  # files read; all others are unchanged since the last check
    seconds: float

    @property
    def damage(self) -> tuple[Problem, ...]:
        """The problems that make the environment unusable."""
        return tuple(p for p in self.problems if p.is_damage)
