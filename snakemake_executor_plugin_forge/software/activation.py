"""The activation of a runtime: variables that it sets and removes, determined once for each runtime and run.

A shell that activates an environment for each job costs up to a second (``conda``'s own). Forge activates once, and
every job gets the difference of the two environments.
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

from ..spec.errors import BrokenRuntimeError
from ..spec.file_policy import TEMPORARY_VARIABLES

CONFLICTING = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "R_LIBS", "R_LIBS_USER", "R_LIBS_SITE", "R_HOME",
    "R_PROFILE_USER", "R_ENVIRON_USER", "PERLLIB", "PERL5LIB", "PERL5OPT", "JULIA_LOAD_PATH", "RUBYLIB",
)  # fmt: skip
"""Variables with which programs of one environment would load libraries of another."""

IN_IMAGE = "FORGE_IN_IMAGE"
"""A variable that ``snakemake-forge shell`` sets in an image, so that ``command.sh`` makes no second sandbox."""

_NOT_OURS = frozenset(("_", "SHLVL", "PWD", "OLDPWD", *TEMPORARY_VARIABLES))
"""Variables of the shell and of the job, which are no part of an activation."""

_HOOK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Activation:
    """The difference of a job's environment from Snakemake's. It travels with each job, so it is small."""

    runtime: str
    identity: str | None = None
    prefix: str | None = None  # of an environment whose interpreter runs scripts
    python: tuple[int, int] | None = None  # the version of its interpreter
    variables: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    root: str | None = None  # of an image

    @property
    def changes_nothing(self) -> bool:
        """Whether it changes nothing."""
        return not (self.prefix or self.variables or self.removed)

    def as_shell(self) -> str:
        """The activation as shell text, for ``command.sh``."""
        unset = f"unset {' '.join(self.removed)}\n" if self.removed else ""
        names = [name for name in self.variables if name.isidentifier()]  # without shell functions
        return unset + "".join(f"export {name}={shlex.quote(self.variables[name])}\n" for name in names)

    def apply(self, environment: MutableMapping[str, str]) -> None:
        """Apply the activation to an environment."""
        for name in self.removed:
            environment.pop(name, None)
        environment.update(self.variables)


def capture(script: str, environment: Mapping[str, str], what: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Run a shell script once and compare its environment before and after.

    Args:
        script: for bash; its output is not shown.
        environment: at its start.
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
        result.seek(0)
        errors.seek(0)
        text, said = result.read(), errors.read()
    if done.returncode != 0 or not text:
        last = said.decode("utf-8", "replace").strip().splitlines()[-5:]
        raise BrokenRuntimeError(f"{what} failed with exit code {done.returncode}: {' / '.join(last) or 'no message'}")
    after = dict(item.split("=", 1) for item in text.decode("utf-8", "surrogateescape").split("\0") if "=" in item)
    names = (after.keys() | environment.keys()) - _NOT_OURS
    changed = {name: after[name] for name in sorted(names) if name in after and after[name] != environment.get(name)}
    return changed, tuple(sorted(name for name in names if name not in after))


@functools.lru_cache(maxsize=64)
def which(name: str, search: str, root: str) -> str | None:
    """The path of a program inside an image; its links may lead anywhere in the image.

    Args:
        search: a search path, as in PATH.
    """
    places = (f"{directory}/{name}" for directory in search.split(os.pathsep) if directory.startswith("/"))
    return next((place for place in places if os.path.lexists(root + place)), None)


def prepend(path: str, directory: str) -> str:
    """A search path with a directory in front, and without it elsewhere."""
    rest = [part for part in path.split(os.pathsep) if part and part != directory]
    return os.pathsep.join([directory, *rest])
