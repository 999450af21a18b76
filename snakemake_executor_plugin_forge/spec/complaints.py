"""The reader of failed programs' messages about refused system calls, the only one. Pure.

A complaint is no proof: supervisor/refusals.py looks whether the sandbox can have been the reason.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

# strerror(3) of the GNU C library without a locale; Go, Node.js and Java have the same words or say the number or name.
_MESSAGES = {
    errno.EROFS: r"read-only file ?system|\bEROFS\b|ReadOnlyFileSystemException|unable to open database file|"
    r"readonly database",
    errno.EBUSY: r"device or resource busy|\bEBUSY\b",
    errno.EXDEV: r"(?:invalid )?cross-device link|\bEXDEV\b",
    errno.EPERM: r"operation not permitted|\bEPERM\b|no permissions to creat\w* (?:a )?new namespace|"
    r"failed to create (?:user )?namespace",
    errno.EACCES: r"permission denied|\bEACCES\b|AccessDeniedException",
    errno.ENOENT: r"no such file or directory|\bENOENT\b|NoSuchFileException|FileNotFoundException|does not exist|"
    r"command not found|: not found",
    errno.ENOSPC: r"no space left on device|\bENOSPC\b|database or disk is full",
    errno.EFBIG: r"file too large|file size limit exceeded|\bEFBIG\b",
    errno.EDQUOT: r"disk quota exceeded|\bEDQUOT\b",
    errno.EOVERFLOW: r"value too large for defined data type|\bEOVERFLOW\b",
    errno.ECONNREFUSED: r"connection refused|\bECONNREFUSED\b|cannot connect to the docker daemon|"
    r"could not (?:connect to|open a connection to your) (?:the )?(?:bus|authentication agent)|"
    r"failed to connect to bus",
    errno.ENETUNREACH: r"network is unreachable|no route to host|name or service not known|could(?: not|n't) resolve|"
    r"temporary failure in name resolution|unable to resolve|getaddrinfo|\bENOTFOUND\b|\bEAI_AGAIN\b|"
    r"UnknownHostException|ENETUNREACH",
}
_NUMBERS = r"\[Errno {0}\]|\(os error {0}\)|errno ?[=:] ?{0}\b"
_MARKS = "\"'`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"  # some languages close with what others open
_QUOTED = re.compile(f"[{_MARKS}]([^{_MARKS}]+)[{_MARKS}]")
_SHELL = re.compile(r"^\S*?\b(?:bash|dash|zsh|ksh|sh): (?:line )?\d+: ")
_NAMESPACES = re.compile(
    r"\b(?:unshare|clone|bwrap|bubblewrap|podman|buildah|singularity|apptainer|runc|crun|namespaces?)\b", re.IGNORECASE
)
_CAPABILITIES = re.compile(r"\b(?:u?mount|pivot_root|chroot|unshare|setns|nsenter|hostname|losetup|mknod|insmod|ip)\b")
_ABSENT = re.compile(
    r"KeyError|unbound variable|not set|unset|parameter null|undefined|missing|required|environ|not found|must be",
    re.IGNORECASE,
)
_SERVICES = (
    (re.compile(r"authentication agent", re.IGNORECASE), "SSH_AUTH_SOCK"),
    (re.compile(r"\bbus\b", re.IGNORECASE), "DBUS_SESSION_BUS_ADDRESS"),
    (re.compile(r"docker daemon", re.IGNORECASE), "DOCKER_HOST"),
)
_LIBRARY = re.compile(
    r"No module named|there is no package called|Can't locate \S+ in @INC|cannot open shared object|ClassNotFound"
)
LIBRARY_PATHS = ("PYTHONPATH", "LD_LIBRARY_PATH", "R_LIBS", "R_LIBS_USER", "PERL5LIB", "CLASSPATH", "NODE_PATH")
"""Variables with directories in which programs look for libraries."""
_AROUND = f":,;()[]<>{_MARKS}"
_UNWRITTEN = re.compile(
    r"\b(?:fail\w*|unable|cannot|can't|couldn't|(?:could|can) not|error)\b.{0,80}\b(?:writ|creat)", re.IGNORECASE
)
_MOST_LINES = 200


@dataclass(frozen=True, slots=True)
class Complaint:
    """A line in which a program says that a system call was refused."""

    error: int  # errno
    names: tuple[str, ...]  # all that may be the path in question, the likeliest first
    line: str

    @property
    def about_namespaces(self) -> bool:
        """Whether the line names a program or a call that makes sandboxes of its own."""
        return _NAMESPACES.search(self.line) is not None

    @property
    def about_capabilities(self) -> bool:
        """Whether the line names a program or a call that needs capabilities of root: capabilities(7)."""
        return _CAPABILITIES.search(self.line) is not None

    @property
    def service(self) -> str:
        """The variable that names the socket of the service in question; "" if the line speaks of none."""
        return next((variable for pattern, variable in _SERVICES if pattern.search(self.line)), "")


def complaints(text: str, translations: Mapping[int, str] | None = None) -> Iterator[Complaint]:
    """Yield the complaints in the end of a text, the last line first.

    Args:
        translations: the messages of further languages, by errno.
    """
    patterns = dict(_MESSAGES)
    for number, message in (translations or {}).items():
        patterns[number] += f"|{re.escape(message)}"
    compiled = {
        number: re.compile(f"{pattern}|{_NUMBERS.format(number)}", re.IGNORECASE)
        for number, pattern in patterns.items()
    }
    for line in reversed(text.splitlines()[-_MOST_LINES:]):
        for number, pattern in compiled.items():
            if pattern.search(line) is not None:
                reason = re.compile(rf"\s*\((?:{pattern.pattern})[^()]*\)", re.IGNORECASE)  # Java: "/a/b (No such …)"
                yield Complaint(number, tuple(dict.fromkeys(_names(reason.sub("", line)))), line)


def _names(line: str) -> Iterator[str]:
    """Yield the parts of a line that can be paths: quoted ones, parts between colons, single words."""
    line = _SHELL.sub("", line)
    yield from _QUOTED.findall(line)
    for part in reversed(re.split(r":\s+|:$|,\s| -> | => ", line)):  # the program's own name comes first
        yield part.strip()
        yield part[part.find("/") :].strip()
    for word in reversed(line.split()):
        yield word.lstrip(_AROUND).rstrip(_AROUND + ".")  # "../ref.fa.fai" begins with dots
        if "=" in word:
            yield word.rpartition("=")[2]


def lacks_library(text: str) -> bool:
    """Whether a text says that a library was not found."""
    return _LIBRARY.search(text) is not None


def lacks(text: str, variable: str) -> bool:
    """Whether a line of a text says that a variable of the environment is missing."""
    named = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(variable)}(?![A-Za-z0-9_])")
    lines = ["", *text.splitlines()[-_MOST_LINES:]]  # Snakemake puts the name below the kind of error
    return any(named.search(line) and _ABSENT.search(above + line) for above, line in pairwise(lines))


def reads(command: str, variable: str) -> bool:
    """Whether a shell command reads a variable of the environment."""
    return re.search(rf"\$\{{?{re.escape(variable)}(?![A-Za-z0-9_])", command) is not None


def could_not_write(text: str) -> bool:
    """Whether a line of a text says that something could not be written or created, for whatever reason."""
    return any(_UNWRITTEN.search(line) for line in text.splitlines()[-_MOST_LINES:])


def removes(command: str, path: str) -> bool:
    """Whether a shell command moves, deletes or replaces a file that it names so."""
    program = r"(?:^|[\s;&|(])(?:mv|rm|gzip|gunzip|bzip2|bunzip2|xz|unxz|unlink|shred|sed\s+(?:-\S+\s+)*-i)\b"
    return re.search(rf"{program}[^;&|\n]*?[\s'\"]{re.escape(path)}(?:$|[\s'\";&|])", command) is not None


def makes_user_namespaces(command: str) -> bool:
    """Whether a shell command makes them: a job of root has no capabilities for other namespaces either."""
    user = r"--(?:unshare-)?user\b|\bunshare\s.*?-\w*[Ur]|--map-|\b(?:apptainer|singularity)\b"
    return re.search(user, command) is not None


def absolute_paths(command: str) -> list[str]:
    """Return the absolute paths that a shell command names."""
    return re.findall(r"(?<![\w./~$}-])(/[\w./+@%,:=~-]*[\w+@%~-])", command)
