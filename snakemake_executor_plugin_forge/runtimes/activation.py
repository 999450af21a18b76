"""What it means to be in a runtime: variables that are set and removed. Worked out once for each runtime and run.

A shell that activates an environment for each job costs up to a second (``conda``'s own); this is done once here, and
its effect, which is a difference of two environments, is what every job gets.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import IO

from ..errors import BrokenRuntimeError

CONFLICTING = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "R_LIBS", "R_LIBS_USER", "R_LIBS_SITE", "R_HOME",
    "R_PROFILE_USER", "R_ENVIRON_USER", "PERLLIB", "PERL5LIB", "PERL5OPT", "JULIA_LOAD_PATH", "RUBYLIB",
)  # fmt: skip
"""With these, libraries of one environment would be loaded by programs of another."""

IN_IMAGE = "FORGE_IN_IMAGE"
"""Set by ``snakemake-forge shell`` in an image, in which ``command.sh`` need not make another sandbox."""

_NOT_OURS = frozenset(("_", "SHLVL", "PWD", "OLDPWD", "TMPDIR", "TMP", "TEMP", "TEMPDIR"))
"""The shell's own variables, and those that are the job's."""

_HOOK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Activation:
    """What a job's environment differs in from that of Snakemake. Goes to each job with its order, so it is small."""

    runtime: str
    identity: str | None = None
    prefix: str | None = None  # of an environment with an interpreter that scripts are to be run with
    python: tuple[int, int] | None = None  # the version of the one in there
    variables: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    root: str | None = None  # of an image

    @property
    def changes_nothing(self) -> bool:
        """Whether jobs need not be told."""
        return not (self.prefix or self.variables or self.removed)

    def as_shell(self) -> str:
        """The same as shell text, for ``command.sh``."""
        unset = f"unset {' '.join(self.removed)}\n" if self.removed else ""
        names = [name for name in self.variables if name.isidentifier()]  # functions are not
        return unset + "".join(f"export {name}={shlex.quote(self.variables[name])}\n" for name in names)

    def apply(self, environment: MutableMapping[str, str]) -> None:
        """Make an environment that of the runtime."""
        for name in self.removed:
            environment.pop(name, None)
        environment.update(self.variables)


def capture(script: str, environment: Mapping[str, str], what: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Run a shell script once and see what it does to its environment.

    Args:
        script: for bash; its output is not shown.
        environment: that it starts with.
        what: for messages: "the activation of …".

    Returns:
        The variables that it sets, and those that it removes.

    Raises:
        BrokenRuntimeError: if it fails or does not end.

    """
    env, bash = shutil.which("env"), shutil.which("bash")
    if env is None or bash is None:
        raise BrokenRuntimeError(f"{what} needs bash and env, which are not in PATH.")
    with tempfile.TemporaryFile() as result, tempfile.TemporaryFile() as errors:  # pipes could fill up and block it
        try:
            done = subprocess.run(
                [bash, "--noprofile", "--norc", "-c", f"{script}\n{env} -0 >&{result.fileno()}"],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(result.fileno(),),
                timeout=_HOOK_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BrokenRuntimeError(f"{what} did not end within {_HOOK_SECONDS:.0f} s.") from None
        text, said = (_content(file) for file in (result, errors))
    if done.returncode != 0 or not text:
        last = said.decode("utf-8", "replace").strip().splitlines()[-5:]
        raise BrokenRuntimeError(f"{what} failed with exit code {done.returncode}: {' / '.join(last) or 'no message'}")
    after = dict(item.split("=", 1) for item in text.decode("utf-8", "surrogateescape").split("\0") if "=" in item)
    names = (after.keys() | environment.keys()) - _NOT_OURS
    changed = {name: after[name] for name in sorted(names) if name in after and after[name] != environment.get(name)}
    return changed, tuple(sorted(name for name in names if name not in after))


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


@functools.lru_cache(maxsize=64)
def which(name: str, search: str, root: str) -> str | None:
    """Where a program is in an image, as seen from inside; its own links may lead anywhere in there.

    Args:
        search: a search path, as in PATH.
        root: of the image.

    """
    places = (f"{directory}/{name}" for directory in search.split(os.pathsep) if directory.startswith("/"))
    return next((place for place in places if os.path.lexists(root + place)), None)


def prepend(path: str, directory: str) -> str:
    """A search path with one more directory in front, and in no other place."""
    rest = [part for part in path.split(os.pathsep) if part and part != directory]
    return os.pathsep.join([directory, *rest])
