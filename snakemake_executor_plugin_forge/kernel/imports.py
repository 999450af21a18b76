"""The import path of Forge's own processes: installed software, and nothing that a workflow or a job has put there.

A workflow may have a ``queue.py`` of its own, and a job may leave one: outside of the sandbox Forge imports neither. In
front of the standard library, ``sys.path`` has the script's directory, PYTHONPATH and the directories of Snakefiles:
of these Forge uses only what is named site-packages. Behind it are site-packages and the entries of .pth files. This
module imports only what each interpreter has at its start. Source: sys_path_init in docs.python.org/3/library.
"""

import _imp  # what importlib.machinery gives
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
"""The directory that holds this package."""

_LIBRARY = os.path.dirname(os.path.realpath(os.__file__))
_SITES = ("site-packages", "dist-packages")
_START = "import sys; sys.path[:] = {path!r}; from {module} import main; sys.exit(main())"


def own_path(path: list[str]) -> list[str]:
    """Return the part of a ``sys.path`` from which Forge's own processes import."""
    standard = next((i for i, entry in enumerate(path) if _is_standard(entry)), 0)
    others = [entry for entry in path[:standard] if os.path.basename(entry) in _SITES]  # of module systems of clusters
    kept = [entry for entry in (*path[standard:], *others) if os.path.isabs(entry) and not _may_be_written(entry)]
    return kept if ROOT in kept else [*kept, ROOT]


def _is_standard(entry: str) -> bool:
    real = os.path.realpath(entry)
    return real == _LIBRARY or (real.endswith(".zip") and os.path.dirname(real) == os.path.dirname(_LIBRARY))


def _may_be_written(entry: str) -> bool:
    """Return whether jobs may leave files in a directory: it is the user's, or in the directory of the workflow."""
    own = entry == ROOT or any(entry.startswith(f"{prefix}/") for prefix in (sys.prefix, sys.base_prefix))
    user = getattr(sys.modules.get("site"), "USER_SITE", None)
    return entry != ROOT and (entry == user or (not own and f"{entry}/".startswith(f"{os.getcwd()}/")))


def own_command(module: str) -> list[str]:
    """Return a command that calls ``main()`` of a module of Forge, with no other import path than Forge's own."""
    return [sys.executable, "-I", "-S", "-c", _START.format(path=own_path(sys.path), module=module)]


def modules_in(directories: list[str]) -> dict[str, str]:
    """Return the modules and packages in directories by name, with their paths; the first directory wins."""
    suffixes = (*_imp.extension_suffixes(), ".py", ".pyc")
    found: dict[str, str] = {}
    for directory in directories:
        try:
            names = sorted(os.listdir(directory or "."))
        except OSError:
            continue
        for name in names:
            stem, dot, rest = name.partition(".")
            path = os.path.join(directory, name)
            if stem.isidentifier() and (f".{rest}" in suffixes if dot else os.path.isfile(f"{path}/__init__.py")):
                found.setdefault(stem, path)
    return found


class OwnImports:
    """A context in which imports find installed software only, and no module of a workflow with the same name.

    Afterwards the workflow finds its own modules, as if nothing had been imported here.
    """

    def __enter__(self) -> None:
        """Hide the workflow's modules."""
        own = own_path(sys.path)
        self._path, sys.path[:] = sys.path[:], own
        self._names = modules_in([entry for entry in self._path if entry not in own])
        self._names.pop(__name__.partition(".")[0], None)
        self._known = frozenset(sys.modules)
        loaded = sys.modules.copy()  # a thread of a logger plugin may import meanwhile
        self._hidden = {name: module for name, module in loaded.items() if self._is_hidden(name, module)}
        for name in self._hidden:
            del sys.modules[name]

    def _is_hidden(self, name: str, module: object) -> bool:
        path = self._names.get(name.partition(".")[0])
        file = getattr(module, "__file__", None)
        return path is not None and file is not None and (file == path or file.startswith(f"{path}/"))

    def __exit__(self, *_: object) -> None:
        """Show them again."""
        for name in sys.modules.keys() - self._known:
            if name.partition(".")[0] in self._names:
                del sys.modules[name]
        sys.modules.update(self._hidden)
        sys.path[:] = self._path
