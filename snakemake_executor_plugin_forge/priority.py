"""Who stands back for whom: nice values and weights for I/O, as asked for. Pure; sandbox/weights.py writes them."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import RequirementError, UsageError
from .model import DEFAULT_IO_WEIGHT, Config, Host, Priority, Require

FORGE_NUMBERS: Mapping[str, tuple[int, int]] = {"forge_nice": (0, 19), "forge_io_weight": (1, 10_000)}
"""Resources with which a rule overrides a number of the run: the lowest and the highest value. setpriority(2) has no
more than 19, io.weight (cgroup-v2.rst) no more than 10000."""

UNKNOWN_YET = "<TBD>"  # of Snakemake: a function that is not called before the job starts


def forge_number(rule: str, resources: Mapping[str, object], key: str) -> int | None:
    """One of :data:`FORGE_NUMBERS`; None if the rule does not say, or it is not known yet.

    Raises:
        UsageError: for what is no whole number, or not between the bounds; names rule, resource and value.

    """
    value = resources.get(key)
    if value is None or value == UNKNOWN_YET:
        return None
    lowest, highest = FORGE_NUMBERS[key]
    number = _whole(value)
    if number is None or not lowest <= number <= highest:
        raise UsageError(
            f"Rule {rule}: resource {key}={value!r} must be a whole number between {lowest} and {highest}."
        )
    return number


def _whole(value: object) -> int | None:
    """Also of text: a profile or ``--default-resources`` may have put quotes around it."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None


def priority_of_run(config: Config) -> Priority:
    """What the cgroup of the run is made with."""
    differ = config.io_weights or config.io_weight != DEFAULT_IO_WEIGHT
    return Priority(config.nice, config.io_weight, differ)


def missing_io_weight(require: Require, host: Host, weight: int) -> list[str]:
    """What a host lacks for a run that asks for a weight, in words: nothing, if it asks for none."""
    if require is Require.NONE or weight == DEFAULT_IO_WEIGHT or not host.io_weight_note:
        return []
    return [f"a weight for I/O, which --forge-io-weight={weight} asks for ({host.io_weight_note})"]


def check_priority(rule: str, resources: Mapping[str, object], require: Require, host: Host) -> bool:
    """Refuse values that are none, and a weight for I/O on a host without, where that was demanded.

    Returns:
        Whether the rule asks for a weight for I/O that it does not get.

    Raises:
        RequirementError: names the rule, the resource and the reason.
        UsageError: see :func:`forge_number`.

    """
    forge_number(rule, resources, "forge_nice")  # a batch backend does not look at it
    weight = forge_number(rule, resources, "forge_io_weight")
    if weight in (None, DEFAULT_IO_WEIGHT) or not host.io_weight_note:
        return False
    if require is not Require.NONE:
        raise RequirementError(
            f"--forge-require={require}: Rule {rule} asks for forge_io_weight={weight}, which this host does not give "
            f"({host.io_weight_note}). What would change that: snakemake-forge doctor; or leave it out."
        )
    return True
