"""The exceptions of Forge: an exception means that Forge, its host or its user's input is wrong.

A job that fails is *not* an exception but a :class:`~.verdict.Verdict`.

::

    ForgeError                 any of these; its message says what, where and what to do
    ├── UsageError             the user's input: a flag, a resource, a file
    │   └── ResourceError      a resource of a job, which is refused on record
    ├── NothingFoundError      the record has no match: an answer, not a mistake
    ├── BusyError              another process is at work in the directory
    ├── HostError              this host does not let Forge do what the user asks for
    │   ├── RequirementError   less isolation than ``--forge-require`` asks for
    │   └── AuditUnavailable   this host does not say which files a job opens
    ├── SandboxError           Forge could not set up a job's sandbox; the job never started
    ├── NurseryError           the nursery process died or could not start
    ├── UnfitError             outputs that an earlier run has staged cannot be published any more
    └── BrokenRuntimeError     a runtime cannot be built or is damaged
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any


class ForgeError(Exception):
    """Base of all errors that Forge raises on purpose."""


class UsageError(ForgeError):
    """The user asks for something impossible; the message names the place, the key and the value."""


class ResourceError(UsageError):
    """A job asks for something that it cannot have; ``remedy`` is one line to paste."""

    def __init__(self, rule: str, happened: str, remedy: str, fits: tuple[tuple[str, int], ...] = ()) -> None:
        """Say what and where, and what to do.

        Args:
            fits: resources, each with the largest value that this host can give.
        """
        super().__init__(f"{happened}. {remedy}.")
        self.rule, self.happened, self.remedy, self.fits = rule, happened, remedy, fits


def located(error: UsageError, rule: str, place: str) -> UsageError:
    """Return an error with the file and line of its rule in it."""
    old, new = f"Rule {rule}:", f"Rule {rule} ({place}):"
    if isinstance(error, ResourceError):
        return ResourceError(rule, error.happened.replace(old, new, 1), error.remedy, error.fits)
    return UsageError(str(error).replace(old, new, 1))


class NothingFoundError(ForgeError):
    """Nothing on record matches the question; the message is the whole answer."""


class BusyError(ForgeError):
    """Another process is, or may be, at work in a directory that is to change; the message says which, and where."""


class HostError(ForgeError):
    """The host refuses an operation that Forge needs; the message says how to allow it."""


class RequirementError(HostError):
    """The host enforces less than ``--forge-require`` demands."""


class AuditUnavailable(HostError):  # noqa: N818  # it is no fault of anybody
    """This host does not say which files a job opens; the message says why, and which host would."""


class SandboxError(ForgeError):
    """Forge could not make the sandbox of a job. Nothing of the job has run."""


class NurseryError(ForgeError):
    """The nursery, which forks all jobs, is gone."""


class UnfitError(ForgeError):
    """Outputs that an earlier run has staged cannot be published; the message says why."""


class BrokenRuntimeError(ForgeError):
    """A runtime cannot be built or is damaged; the message names the file and the command that helps."""


def near_miss(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of an error message: the known word that is closest or, if none is close, all known words.

    Args:
        prefix: the beginning of all known words, which makes none of them closer.
    """
    import difflib  # not at the top: the launcher, which forks each job, loads this module too

    words = [str(w) for w in known]
    near = difflib.get_close_matches(word.removeprefix(prefix), [w.removeprefix(prefix) for w in words], n=1)
    if near:
        return f" Did you mean {prefix}{near[0]}?"
    return f" Known are {', '.join(words)}." if words else " There are none."


def require(module: str, extra: str) -> Any:
    """Import a module that an extra of the package installs.

    Raises:
        UsageError: names the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".", maxsplit=1)[0] != error.name.split(".")[0]:
            raise
        raise UsageError(
            f"This needs {error.name}, which is not installed: "
            f"python -m pip install 'snakemake-executor-plugin-forge[{extra}]'"
        ) from None
