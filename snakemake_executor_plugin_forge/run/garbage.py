"""The choice of leftovers that ``snakemake-forge gc`` removes; staging/recovery.py has the inventory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..record.identity import is_here
from ..sandbox.cgroups.base import member_pids
from ..staging.liveness import is_own
from ..staging.recovery import Inventory, Kind, Leftover

PARTS: dict[str, tuple[Callable[[Inventory], Iterator[Leftover]], ...]] = {
    "staging": (Inventory.waiting, Inventory.layers, Inventory.copies),
    "scratch": (Inventory.scratch, Inventory.kept_scratch),
    "cgroups": (Inventory.cgroups,),
    "checkpoints": (Inventory.checkpoints,),
    "home": (Inventory.homes,),
}
"""Part, as the command names it, to the leftovers in it."""


@dataclass(frozen=True, slots=True)
class Age:
    """The times for which leftovers stay. None: for ever."""

    after_seconds: float | None = 86400.0  # those that are not wanted
    wanted_after_seconds: float | None = 30 * 86400.0
    wanted_max_bytes: int | None = None  # of all wanted ones together: the oldest are removed first


def decide(found: Sequence[Leftover], age: Age) -> list[tuple[Leftover, str]]:
    """The leftovers to remove, each with the reason, in their order. Pure."""
    why: dict[int, str] = {}
    for number, item in enumerate(found):
        limit = age.wanted_after_seconds if item.wanted else age.after_seconds
        if limit is not None and item.age_seconds > limit:
            why[number] = "age" if item.wanted else "left by a run that is dead"
    if age.wanted_max_bytes is not None:
        rest = [n for n, item in enumerate(found) if item.wanted and n not in why]
        total = sum(found[n].size_bytes for n in rest)
        for number in sorted(rest, key=lambda n: -found[n].age_seconds):
            if total <= age.wanted_max_bytes:
                break
            why[number] = "size"
            total -= found[number].size_bytes
    return [(found[number], why[number]) for number in sorted(why)]


def find(state: str, workdir: str, part: str) -> list[Leftover]:
    """The leftovers in one part: see PARTS.

    Only those of this user, to which the record of a run of this user on this host leads; an unknown run may be alive.
    """
    inventory = Inventory(state, workdir, every_attempt=True)
    dead = inventory.dead.items()
    here = {n for n, run in dead if is_here(run.record)}
    known = {name for name in here if is_own(inventory.dead[name].path)}
    return [
        item
        for leftovers in PARTS[part]
        for item in leftovers(inventory)
        if (item.run in known or item.kind in (Kind.CHECKPOINT, Kind.HOME, Kind.COPY))
        and all(is_own(path, is_file=item.kind is Kind.COPY) for path in item.paths)
        and not (item.kind is Kind.CGROUP and member_pids(item.paths[0]))
    ]


def remove(leftover: Leftover) -> int:
    """Remove a leftover, after finishing what its run had begun to publish; return the bytes that this frees.

    Raises:
        OSError: if a process uses it now, or not all of it could be removed.
    """
    leftover.clear("snakemake-forge gc")
    if leftover.kind is not Kind.WAITING and any(os.path.lexists(path) for path in leftover.paths):
        raise OSError(errno.ENOTEMPTY, "not all of it could be removed", leftover.paths[0])
    return leftover.size_bytes
