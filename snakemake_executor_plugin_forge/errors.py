"""The exceptions of Forge: an exception means that Forge, its host or its user's input is wrong.

A job that fails is *not* an exception: it is a :class:`~.model.Verdict`.

::

    ForgeError                 anything below; its message says what, where and what to do
    ├── UsageError             the user's input: a flag, a resource, a file
    ├── NothingFoundError      nothing on record is what was asked for: an answer, not a mistake
    ├── BusyError              somebody is at work where nobody may be
    ├── HostError              this host does not let Forge do what was asked
    │   ├── RequirementError   less isolation than ``--forge-require`` asks for
    │   └── AuditUnavailable   this host does not say which files a job opens
    ├── SandboxError           one job's sandbox could not be set up; the job never started
    ├── NurseryError           the nursery process died or could not be started
    ├── UnfitError             what an earlier run has staged cannot be published any more
    └── BrokenRuntimeError          a runtime cannot be built or is damaged
"""

from __future__ import annotations


class ForgeError(Exception):
    """Base of all errors that Forge raises on purpose."""


class UsageError(ForgeError):
    """The user asked for something impossible; the message names the place, the key and the value."""


class NothingFoundError(ForgeError):
    """Nothing on record matches what was asked for; the message is the whole answer."""


class BusyError(ForgeError):
    """Somebody is, or may be, at work in a directory that is to be changed; the message says who, and where."""


class HostError(ForgeError):
    """The host refuses an operation that Forge needs; the message carries the way to mend it."""


class RequirementError(HostError):
    """The host enforces less than ``--forge-require`` demands."""


class AuditUnavailable(HostError):  # noqa: N818  # it is no fault of anybody
    """This host does not say which files a job opens; the message says why, and where it would."""


class SandboxError(ForgeError):
    """The sandbox of one job could not be made. Nothing of the job has run."""


class NurseryError(ForgeError):
    """The nursery, from which all jobs are forked, is gone."""


class UnfitError(ForgeError):
    """What an earlier run has staged cannot be published; the message says why."""


class BrokenRuntimeError(ForgeError):
    """A runtime cannot be built, or is damaged; the message names the file and the command that helps."""
