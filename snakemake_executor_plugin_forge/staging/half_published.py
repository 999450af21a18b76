"""Outputs of a job of which nobody can know whether they are all new: its journal is damaged, or of other files.

Snakemake must not take them for complete, so they get its own mark, as outputs of a job that it has seen begin and not
end: a file in ``.snakemake/incomplete`` (FilePersistence of snakemake.persistence.file).
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..record import sound
from ..record.jsonfile import SPEC, VERDICT, load, write_file
from ..sandbox.filesystem.overlay import parts_of_layer, staging_of
from ..spec.file_policy import below
from ..spec.paths import COPY_SIGN, STATE
from .journal import UNDECIDED
from .layer_files import is_whiteout
from .owners import record_name

_MARKS = ".snakemake/incomplete"


def half_published(workdir: str, directory: str) -> tuple[str, ...]:
    """Return the outputs, as their rule names them, of the job whose files are in a layer; () if it is unknown.

    Args:
        directory: the layer; it may have been set aside.
    """
    parts = parts_of_layer(os.path.basename(directory).removeprefix(UNDECIDED))
    if parts is None:
        return ()
    run = f"{workdir}/{STATE}/runs/{parts[0].partition(COPY_SIGN)[0]}"
    for name in sorted(os.listdir(run)) if os.path.isdir(run) else ():
        verdict = load(f"{run}/{name}/{VERDICT}")
        if verdict is None or verdict.get("staged"):
            plan = sound.spec(load(f"{run}/{name}/{SPEC}") or {})
            if any(_staged(plan, workdir, *parts)):
                return tuple(map(str, plan.get("outputs", ())))
    return ()


def _staged(plan: Mapping[str, Any], workdir: str, run: str, pid: int) -> Iterator[str]:
    """Yield what the layers of a supervisor have of the outputs of an attempt."""
    planned, before = map(str, plan.get("layers", ())), str(plan.get("workdir") or workdir)
    # Since then, the working directory may have been moved or copied.
    roots = tuple(workdir + root.removeprefix(before) if below(root, before) else root for root in planned)
    for output in map(str, plan.get("outputs", ())):
        parent, name = os.path.split(os.path.join(workdir, output))
        place = f"{os.path.realpath(parent)}/{name}"
        for root in (root for root in roots if below(place, root)):
            for sign in ("", UNDECIDED):
                layers = f"{glob.escape(f'{staging_of(root, workdir)}/{sign}forge-{run}-{pid}-')}*"
                paths = (f"{layer}/upper{place.removeprefix(root)}" for layer in glob.glob(layers))
                yield from (path for path in paths if os.path.lexists(path) and not is_whiteout(os.lstat(path)))


def mark(workdir: str, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Have Snakemake take outputs for incomplete; return those that were not marked before.

    Raises:
        OSError: if that is not possible.
    """
    marked = []
    for output in outputs:
        path = f"{workdir}/{_MARKS}/{record_name(output)}"
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_file(path, json.dumps({"external_jobid": None}))
            marked.append(output)
    return tuple(marked)
