"""Sentences about the sandbox's refusals and about their remedies: a part of spec/words.py. Pure."""

from __future__ import annotations

import errno

from .job import LaunchSpec
from .printable import printable, python_string
from .verdict import Refusal, RefusalKind
from .wildcards import with_wildcards

_ERRORS = {
    errno.EROFS: "Read-only file system",
    errno.EBUSY: "Device or resource busy",
    errno.EXDEV: "Invalid cross-device link",
    errno.EPERM: "Operation not permitted",
    errno.EACCES: "Permission denied",
    errno.ENOENT: "No such file or directory",
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.ECONNREFUSED: "Connection refused",
}  # strerror(3)
_RESOURCE = "to allow it, add to rule {rule}: resources: "
_CATALOG = "to allow it, add to forge.yaml: defaults: "
_READABLE = f"{_CATALOG}{{{{paths: {{{{read: [{{place}}]}}}}}}}}"
_REFUSED = {
    RefusalKind.INPUT: (
        "protects its input {subject}, which it tried to change, move, delete or hard-link{told}",
        f'{_RESOURCE}forge_files="open" (or work on a copy)',
    ),
    RefusalKind.LAYER: (
        "cannot change {subject}: a large directory to rename, or a file of another group, that was there before{told}",
        f'{_RESOURCE}forge_files="open"',
    ),
    RefusalKind.OUTSIDE: (
        "does not let it write to {subject}, outside the working directory and its outputs{told}",
        f"{_CATALOG}{{{{paths: {{{{write: [{{place}}]}}}}}}}}",
    ),
    RefusalKind.PRIVATE: ("hides {subject}, which exists on this host{told}", _READABLE),
    RefusalKind.UNDECLARED: (
        "hides {subject}, which the rule does not declare (files strict)",
        "to allow it, add to rule {rule}: input: {pattern}",
    ),
    RefusalKind.COMMAND: ("hides the program {subject}, which is in PATH on this host", _READABLE),
    RefusalKind.HIDDEN: (
        "hides {subject}{told}, as forge.yaml says",
        "to allow it, remove {place} from protect: or hide: in forge.yaml",
    ),
    RefusalKind.SOCKET: (
        "hides {subject}, the way to a service of this host{told}",
        "no setting of Forge shows it: use that service outside the jobs of Forge",
    ),
    RefusalKind.VARIABLE: (
        "does not pass on the variable {subject}, which looks like a secret or a service of this host",
        "to allow it, add to the Snakefile: envvars: {place}",
    ),
    RefusalKind.NETWORK: ("gives it no network{told}", f'{_RESOURCE}forge_network="on"'),
    RefusalKind.CAPABILITIES: (
        "gives it none of root's capabilities{told}",
        (
            "no setting gives them; a job has them in a user namespace (unshare --map-root-user …), if its rule has: "
            'resources: forge_nested="on"'
        ),
    ),
    RefusalKind.NAMESPACES: (
        "refuses namespaces and sandboxes of its own{told}",
        f'{_RESOURCE}forge_nested="on"',
    ),
    RefusalKind.FULL: ("has no part in it: the file system {subject} is full{told}", "free space there"),
}
"""Return the sentence about a refusal of the sandbox, and about its remedy."""


def refused(refusal: Refusal, spec: LaunchSpec) -> str:
    """Say what the sandbox refused: after "the sandbox"."""
    told = f" ({_ERRORS[refusal.error]})" if refusal.error in _ERRORS else ""
    return _REFUSED[refusal.kind][0].format(subject=printable(refusal.subject), told=told, rule=spec.rule)


def allowed_by(refusal: Refusal, spec: LaunchSpec) -> str:
    """Say the line that allows what the sandbox refused."""
    place = python_string(refusal.place or refusal.subject)
    pattern = python_string(with_wildcards(refusal.subject, spec.wildcards))
    allow = _REFUSED[refusal.kind][1]
    return allow.format(subject=printable(refusal.subject), place=place, rule=spec.rule, pattern=pattern)


def full(refusal: Refusal) -> str:
    """Say what a full file system has none of: after "there is"."""
    what = "no quota left" if refusal.error == errno.EDQUOT else "no space left (df), or no inode (df -i),"
    return f"{what} on the file system {printable(refusal.subject)}"
