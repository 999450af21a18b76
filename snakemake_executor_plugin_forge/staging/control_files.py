"""Control files: names that programs look for by themselves, in the directory where somebody starts them.

A job that leaves one undeclared would steer the next run, or the user's next ``git status``, outside of its sandbox. So
it fails before anything is published, and its rule has to declare the file. docs/explanation/files.md has the list, and
docs/decisions/0030 what is not in it (Makefile, scripts, data), and why.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase

from ..kernel.descriptors import closing
from ..spec.file_policy import ancestors
from ..spec.paths import CATALOG_FILE
from .contents import is_byte_code

_SNAKEFILES = ("Snakefile", "snakefile", "workflow/Snakefile", "workflow/snakefile")
WORKFLOW = (*_SNAKEFILES, CATALOG_FILE, "profiles/**/config*.y*ml")
"""The files that steer Snakemake and Forge, in the directories of a workflow."""

PROGRAMS = (
    ".git/hooks/*", ".git/config", ".gitconfig", ".config/git/*",
    ".envrc", ".direnvrc", ".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".profile", ".zshenv", ".zshrc",
    ".zprofile", ".zlogin", ".inputrc", ".config/fish/**",
    "sitecustomize.py", "usercustomize.py", "pyvenv.cfg", "*.pth", "site-packages/**", "dist-packages/**", ".pdbrc",
    ".ipython/**", ".jupyter/**", ".pydistutils.cfg", ".config/pip/*",
    ".Rprofile", ".Renviron", ".condarc", ".mambarc", ".npmrc", ".gdbinit", ".vimrc", ".exrc", ".nvimrc", ".vscode/*",
    ".netrc", ".curlrc", ".wgetrc", ".ssh/**", ".gnupg/**", ".config/snakemake/**",
    ".git", ".bash_aliases", ".cshrc", ".tcshrc", ".login", ".kshrc", ".xonshrc", ".pam_environment", ".xprofile",
    ".xsession", ".config/autostart/**", ".config/systemd/**", ".forward", ".rhosts", ".pythonrc", ".pythonrc.py",
    ".pypirc", "matplotlibrc", ".config/matplotlib/*", ".irbrc", ".bundle/*", ".yarnrc", ".yarnrc.yml", ".lldbinit",
    ".nvim.lua", ".lvimrc", ".vim/**", ".config/nvim/**", ".emacs", ".emacs.d/**", ".dir-locals.el", ".idea/**",
    ".devcontainer/**", ".devcontainer.json", "*.code-workspace", ".pre-commit-config.yaml", ".husky/**",
    ".githooks/**", ".mise.toml", "mise.toml", "nextflow.config", ".config/nextflow/*", ".docker/**", ".aws/**",
    ".pgpass", ".my.cnf",
)  # fmt: skip
"""The files that steer other programs, in all directories but repositories and environments that jobs have made."""

_HARMLESS = (
    "core.repositoryformatversion", "core.filemode", "core.bare", "core.logallrefupdates", "core.ignorecase",
    "core.symlinks", "core.precomposeunicode", "core.worktree", "core.untrackedcache", "core.sparsecheckout*",
    "core.autocrlf", "remote.*.url", "remote.*.fetch", "remote.*.pushurl", "remote.*.tagopt", "remote.*.promisor",
    "remote.*.partialclonefilter", "branch.*.remote", "branch.*.merge", "branch.*.rebase", "submodule.*.url",
    "submodule.*.active", "submodule.active", "user.name", "user.email", "extensions.*", "gc.auto", "advice.*",
    "lfs.repositoryformatversion", "lfs.*.access", "lfs.*.locksverify", "remote.*.mirror", "core.sharedrepository",
    "receive.denynonfastforwards",
)  # fmt: skip
_TEXT_BYTES, _CONFIG_BYTES = 4096, 1 << 16
_SETTINGS = ("config", "config.worktree", "commondir")
_UNITS = (".git", "bin/python", "bin/python3", "conda-meta")


class ControlFiles:
    """Decides which new files of a job are control files."""

    def __init__(self, is_left: Callable[[str], bool], targets: frozenset[str]) -> None:
        """Look at nothing yet.

        Args:
            is_left: whether a job of the workflow has left an existing file or directory.
            targets: outputs of the job.
        """
        self._is_left = is_left
        self._targets = targets

    def has(self, root: str, place: str, found: str, before: str = "") -> bool:
        """Whether a new or changed file is a control file.

        Args:
            root: the directory over which the job has a layer.
            place: where it is to be.
            found: where it is now, with all around it that the job has written.
            before: its version from before the job, whose settings do not count; "": none.
        """
        name = place.removeprefix(f"{root}/")
        leads = os.path.islink(found)
        if _pattern(WORKFLOW).fullmatch(name) or (leads and _pattern(_directories(WORKFLOW)).fullmatch(name)):
            return _has_workflow(root, name)
        if is_of_git(place, found):
            return not _is_harmless(found, before)
        if os.path.basename(place) == "HEAD" and not before:
            return _becomes_repository(os.path.dirname(place))
        if leads and _pattern(_directories(PROGRAMS)).fullmatch(name):  # which has such files under another name
            return not self._is_in_unit(root, place, found)
        if not _pattern(PROGRAMS).fullmatch(name) or (name.endswith(".pth") and _is_binary(found)):
            return False
        return not self._is_in_unit(root, place, found)

    def _is_in_unit(self, root: str, place: str, found: str) -> bool:
        """Whether a file is part of a repository or an environment that jobs of this workflow have made as a whole."""
        above = zip(ancestors(place), ancestors(found), strict=False)
        for directory, layer in above:
            if directory == root:
                return False
            marks = [f"{parent}/{name}" for parent in (layer, directory) for name in _UNITS]
            has_name = not os.path.basename(directory).startswith(".")  # tools find .venv by themselves
            if has_name and any(map(os.path.lexists, marks)):
                return self._is_made(directory)
        return False

    def _is_made(self, directory: str) -> bool:
        if not os.path.lexists(directory) or self._is_left(directory):
            return True
        with os.scandir(directory) as entries:  # Snakemake may have made it for an output
            return all(entry.path in self._targets for entry in entries)


def _has_workflow(root: str, name: str) -> bool:
    """Whether a workflow is where a file that steers one is to be, or it is the working directory itself."""
    parts = name.split("/")
    parts = parts[: parts.index("profiles")] if "profiles" in parts[:-1] else parts[:-1]
    parts = parts[:-1] if parts[-1:] == ["workflow"] else parts
    place = "/".join((root, *parts))
    return not parts or any(os.path.lexists(f"{place}/{other}") for other in (*_SNAKEFILES, CATALOG_FILE))


def is_cached(place: str, is_left: Callable[[str], bool]) -> bool:
    """Whether a new file is byte code of a source that no job has left, which Python would run instead."""
    if not is_byte_code(place):
        return False
    directory, name = os.path.split(place)
    source = f"{os.path.dirname(directory)}/{name.partition('.')[0]}.py"
    return os.path.lexists(source) and not is_left(source)


@functools.cache
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """The ends of paths that fit: * is in one name, ** in any number of them."""
    parts = (re.escape(name) for name in names)
    kinds = [part.replace(r"/\*\*/", "/(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*") for part in parts]
    return re.compile(rf"(?:.*/)?(?:{'|'.join(kinds)})", re.DOTALL)


def is_of_git(place: str, found: str) -> bool:
    """Whether a file is a hook or a setting of a repository: a directory .git, or one with a HEAD, there or new."""
    directory, name = os.path.split(place)
    layer = os.path.dirname(found)
    if os.path.basename(directory) == "hooks" and not name.endswith(".sample"):
        directory, layer = os.path.dirname(directory), os.path.dirname(layer)
    elif name not in _SETTINGS and not (name == "hooks" and os.path.islink(found)):
        return False
    return os.path.basename(directory) == ".git" or any(os.path.lexists(f"{d}/HEAD") for d in (layer, directory))


def _becomes_repository(directory: str) -> bool:
    """Whether a HEAD would make git obey files that are there already, and that are not harmless."""
    with suppress(OSError):
        hooks = [f"hooks/{name}" for name in _listed(f"{directory}/hooks") if not name.endswith(".sample")]
        there = (path for name in (*_SETTINGS, *hooks) if os.path.lexists(path := f"{directory}/{name}"))
        return not all(map(_is_harmless, there))
    return False


def _listed(directory: str) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(directory)
    return []


def _is_harmless(found: str, before: str = "") -> bool:
    """Whether a setting of git only says what git itself writes there, so that it names no program; a hook never is."""
    directory, name = os.path.split(found)
    if "hooks" in (os.path.basename(directory), name):
        return False
    if name == "commondir":  # of a worktree: where its settings and hooks are
        return _beginning(found, _TEXT_BYTES) in (b"../..", b"../..\n")
    steering = _steering(found)
    return steering is not None and (not steering or (bool(before) and steering <= (_steering(before) or frozenset())))


def _steering(found: str) -> frozenset[str] | None:
    """The lines of a configuration of git that ``git clone`` does not write, as key=value; None: nobody can tell."""
    text = _beginning(found, _CONFIG_BYTES)
    if text is None or len(text) == _CONFIG_BYTES:
        return None
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
    section, steering = "", set[str]()
    for line in lines:
        if line.endswith("\\") or (line.startswith("[") and not line.endswith("]")):
            return None
        if line.startswith("["):
            head, _, rest = line[1:-1].partition(" ")
            section = f"{head.lower()}.{rest.strip().strip(chr(34))}" if rest else head.lower()
        elif line and line[0] not in "#;":
            name, _, value = line.partition("=")
            key = f"{section}.{name.strip().lower()}"
            if not any(fnmatchcase(key, pattern) for pattern in _HARMLESS):
                steering.add(f"{key}={value.strip()}")
    return frozenset(steering)


@functools.cache
def _directories(names: tuple[str, ...]) -> tuple[str, ...]:
    """The directories in which such files are: a link of that name leads to files that have other names."""
    found = (name[:place] for name in names for place, sign in enumerate(name) if sign == "/")
    return tuple(dict.fromkeys(path for path in found if "*" not in path))


def _is_binary(found: str) -> bool:
    """Whether a file is no text: ``*.pth`` are settings of Python's, or weights of a model."""
    return b"\0" in (_beginning(found, _TEXT_BYTES) or b"")


def _beginning(found: str, size: int) -> bytes | None:
    """The first bytes of a regular file; None if it is none, or cannot be read."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError), closing(os.open(found, flags)) as fd:
        return os.read(fd, size) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    return None
