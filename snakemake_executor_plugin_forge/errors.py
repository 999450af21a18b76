"""The exceptions of Forge: an exception means that Forge, its host or its user's input is wrong.

A job that fails is *not* an exception: it is a :class:`~.model.Verdict`.

::

    ForgeError                 anything below; its message says what, where and what to do
    ├── UsageError             the user's input: a flag, a resource, a file
    ├── HostError              this host does not let Forge do what was asked
    │   └── RequirementError   less isolation than ``--forge-require`` asks for
    ├── SandboxError           one job's sandbox could not be set up; the job never started
    └── NurseryError           the nursery process died or could not be started
"""

from __future__ import annotations


class ForgeError(Exception):
    """Base of all errors that Forge raises on purpose."""


class UsageError(ForgeError):
    """The user asked for something impossible; the message names the place, the key and the value."""


class HostError(ForgeError):
    """The host refuses an operation that Forge needs; the message carries the way to mend it."""


class RequirementError(HostError):
    """The host enforces less than ``--forge-require`` demands."""


class SandboxError(ForgeError):
    """The sandbox of one job could not be made. Nothing of the job has run."""


class NurseryError(ForgeError):
    """The nursery, from which all jobs are forked, is gone."""
