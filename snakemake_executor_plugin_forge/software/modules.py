"""Environment modules of rules (``envmodules:``), loaded once before the first job, to see whether that works.

Snakemake itself loads them in the shell of each job. Without this check, a module that is gone or damaged fails job by
job, and one whose programs are gone goes unnoticed until a command is not found.

Sources: module(1) of environment-modules and of Lmod: ``LOADEDMODULES``, ``_LMFILES_``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from ..spec.errors import BrokenRuntimeError
from .activation import capture


def check(rule: str, names: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Load the modules of a rule.

    Args:
        environment: of Snakemake; the command ``module`` comes from ``BASH_ENV`` or an exported function.

    Returns:
        Sentences about directories of programs that are not there.

    Raises:
        BrokenRuntimeError: if they cannot be loaded, or none of their directories of programs is there.
    """
    load = f"module load {' '.join(map(shlex.quote, names))}"
    by_hand = f"By hand: module purge && {load}; what there is: module avail"
    script = f"{{ module purge && {load}; }} || exit"
    try:
        changed, _ = capture(script, environment, f"Rule {rule}: envmodules: {', '.join(names)}")
    except BrokenRuntimeError as error:
        raise BrokenRuntimeError(f"{error}. {by_hand}.") from None
    before = environment.get("PATH", "").split(os.pathsep)
    new = [d for d in changed.get("PATH", "").split(os.pathsep) if d and d not in before]
    gone = [directory for directory in new if not os.path.isdir(directory)]
    files = changed.get("_LMFILES_", "").replace(os.pathsep, ", ") or ", ".join(names)
    said = [f"Rule {rule}: {files} puts {directory} into PATH, which is not there" for directory in gone]
    if gone and gone == new:
        raise BrokenRuntimeError(f"{'; '.join(said)}: the programs of the module are gone. {by_hand}.")
    return said
