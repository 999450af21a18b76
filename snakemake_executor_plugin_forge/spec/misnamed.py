"""Resources whose names look like a limit and are none: guesses at Snakemake's standard names. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

_GUESSES = {
    "mem_mb": ("mem_gb", "mem_kb", "memory", "memory_mb", "memory_gb", "ram", "ram_mb", "ram_gb", "vmem", "h_vmem"),
    "runtime": (
        "time",
        "time_min",
        "walltime",
        "wall_time",
        "wall",
        "minutes",
        "hours",
        "timelimit",
        "time_limit",
        "h_rt",
    ),
    "threads": ("cpu", "cpus", "cores", "ncpus", "n_cpus", "ncores", "nthreads", "num_threads", "ppn"),
    "disk_mb": ("disk_gb", "scratch_mb", "scratch_gb", "tmp_mb", "tmp_gb"),
}
_MEANINGS = {
    "mem_mb": "mem_mb, in MB",
    "runtime": "runtime, in minutes",
    "threads": "threads, a keyword of the rule",
    "disk_mb": "disk_mb, in MB",
}
_STANDARD = frozenset((
    "mem", "mem_mb", "mem_mib", "disk", "disk_mb", "disk_mib", "runtime", "tmpdir", "threads", "gpu", "gpus", "nodes",
    "tasks", "mpi", "qos", "constraint", "gres",
    "cpus_per_task", "cpus_per_gpu", "mem_mb_per_cpu", "ntasks", "gpu_model",
))  # fmt: skip
_NEAR = 0.8  # of difflib's ratio: mem_bm is 0.83 from mem_mb


def meant(name: str) -> str | None:
    """Return the standard name that a resource's name is a guess at; None for any other name."""
    if name in _STANDARD or name.startswith(("_", "slurm_", "forge_")):
        return None
    guessed = next((standard for standard, guesses in _GUESSES.items() if name.lower() in guesses), None)
    near = difflib.get_close_matches(name.lower(), _GUESSES, n=1, cutoff=_NEAR)
    return guessed or (near[0] if near else None)


def warnings(rules: Mapping[str, tuple[Iterable[str], str]], counted: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each name that limits nothing.

    Args:
        rules: for each rule the names of its resources, ``threads`` if it has more than one, and its place.
        counted: names that Snakemake counts (``--resources``): they have a meaning.
    """
    counted = frozenset(counted)
    found: dict[str, list[str]] = {}
    for rule, (names, place) in rules.items():
        own = frozenset(names)
        for name in sorted(own - counted):
            standard = meant(name)
            if standard is not None and standard not in own:
                found.setdefault(name, []).append(f"{rule} ({place})" if place else rule)
    for name, places in found.items():
        shown = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
        what = f"{'Rule' if len(places) == 1 else 'Rules'} {shown}"
        yield f"{what}: resource {name} limits nothing. Did you mean {_MEANINGS[meant(name) or 'mem_mb']}?"
