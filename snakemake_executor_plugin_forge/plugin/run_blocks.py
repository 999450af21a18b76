"""The evidence that a fork of this process is not what a new Snakemake would be, for the ``run:`` blocks of a run.

``local`` starts a new Snakemake for each of them. The nursery is forked while the executor is made: the state of that
moment counts. Only files are compared whenever such a job starts.
"""

from __future__ import annotations

import dis
import functools
import os
import random
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any

from ..kernel.tree import walk
from ..spec.errors import HostError
from ..spec.job import RunBlocks
from ..spec.run_blocks import Difference, DifferenceKind, mode_of, why_new
from . import parsing
from .live_objects import is_library, live_object, objects
from .snakemake_internals import own_descriptors, own_threads

_VOLATILE = {
    *("default_rng", "getpid", "getrandbits", "gmtime", "localtime", "mkdtemp", "mkstemp", "monotonic", "monotonic_ns"),
    *("NamedTemporaryFile", "now", "perf_counter", "perf_counter_ns", "process_time", "strftime", "SystemRandom"),
    *("TemporaryDirectory", "time_ns", "today", "token_bytes", "token_hex", "token_urlsafe", "urandom", "utcnow"),
    *("uuid1", "uuid4"),
}
"""Functions that have another value in each process."""
_LOADS = ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD")
_ADDED_RESOURCES = ("mem_mb", "mem_mib", "mem", "disk_mb", "disk_mib", "disk")
_FRESH_POSITION = 623  # of numpy's Mersenne Twister before it is seeded or drawn from: MT19937._legacy_seeding()
_WORDS = 624  # of its state
_SETTLE_SECONDS = 0.5
_FORKABLE = ("jemalloc_bg_thd",)  # jemalloc (in pyarrow) starts it again in a fork: background_thread_postfork_child()


class RunBlockStarts:
    """Decides for the ``run:`` blocks of one run how they start. Make it while Forge has no thread."""

    def __init__(self, workflow: Any, mode: RunBlocks, notice: Callable[[str], None]) -> None:
        self._workflow = workflow
        self._mode = mode
        self._notice = notice
        self._named: set[str] = set()
        self._of_rules: dict[str, list[Difference]] = {}
        self._added: dict[str, list[str]] = {}
        self._seen = parsing.ended()
        self.unseeded = tuple(_unseeded(self._seen))
        """Modules whose generator of random numbers each job has to seed for itself, as a new process does."""
        self._of_run: list[Difference] = []
        self._files: _Files | None = None
        if mode is not RunBlocks.NEW and any(rule.is_run for rule in workflow.rules):
            self._of_run = list(self._look())
            self._of_rules = _of_rules(workflow, self._seen)
            self._added = {rule.name: _added_resources(rule.run_func) for rule in workflow.rules if rule.is_run}
            self._files = _Files(self._seen)

    def reason(self, job: Any) -> str | None:
        """Why a job needs a Snakemake of its own; None if a fork does. Says so once for each rule."""
        settings = self._workflow.execution_settings
        if not job.is_run or job.is_template_engine or settings.use_threads or settings.debug:
            return None
        resources = dict(job.resources.items())
        mode, setting = mode_of(job.rule.name, resources, self._mode)
        why = why_new(mode, setting, self._differences(job.rule, resources))
        if why is not None and job.rule.name not in self._named:
            self._named.add(job.rule.name)
            self._notice(f"Forge: rule {job.rule.name} runs in a Snakemake of its own, because {why}.")
        return None if why is None else str(why)

    @functools.cached_property
    def sources(self) -> tuple[str, ...]:
        """The files and directories that a Snakemake of its own reads before the job, outermost first."""
        seen, workflow = self._seen, self._workflow
        here = os.getcwd() + "/"
        listed = {*seen.listed, *(path for paths in seen.patterns.values() for path in paths)}
        paths = {*map(os.path.abspath, (*workflow.linemaps, *workflow.configfiles)), *seen.read, *listed}
        return tuple(sorted(p for p in paths if not here.startswith(p.rstrip("/") + "/") and os.path.exists(p)))

    def _differences(self, rule: Any, resources: Container[str]) -> Iterator[Difference]:
        yield from self._of_run
        yield from self._of_rules.get(rule.name, ())
        for name in self._added.get(rule.name, ()):
            if name not in resources:
                yield Difference(DifferenceKind.RESOURCE, name)
        if self._files is not None:
            yield from self._files.stale()

    def _look(self) -> Iterator[Difference]:
        yield from (
            Difference(DifferenceKind.THREAD, name)
            for name in _lasting_threads(own_threads(self._workflow) | self._seen.tasks)
        )
        own = own_descriptors(self._workflow)
        for number, link in self._seen.left_open.items():
            if number not in own and "/.snakemake/" not in link and parsing.is_open_still(number, link):
                yield Difference(DifferenceKind.DESCRIPTOR, link)
        yield from (
            Difference(DifferenceKind.RANDOM, name) for name in ("random", "numpy.random") if _is_used(name, self._seen)
        )


def clear_caches(workflow: Any) -> None:
    """Empty the caches of the Snakefile's functions: a new process would call the functions."""
    for rule in workflow.rules:
        for _, value in objects(getattr(rule.run_func, "__globals__", {}), workflow.vanilla_globals):
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


# -- threads -----------------------------------------------------------------------------------------------------------


def _lasting_threads(known: set[int]) -> list[str]:
    """The threads that a fork loses. A library like OpenBLAS ends its own when the process forks: pthread_atfork(3)."""
    if not _tasks() - known:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it says what is being found out here
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    with suppress(ChildProcessError):  # the program around Snakemake ignores SIGCHLD or waits for all children
        os.waitpid(pid, 0)
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    end = time.monotonic() + _SETTLE_SECONDS  # a thread is in /proc for a moment after its end
    while True:
        left = {number: names.get(number) or _task_name(number) for number in _tasks() - known}
        found = {*left.values()} - {*_FORKABLE}
        if not found or left.keys() & names.keys() or time.monotonic() > end:
            return sorted(found)
        time.sleep(0.005)


def _tasks() -> set[int]:
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}
    except FileNotFoundError:
        raise HostError("Forge needs /proc, which is not mounted here: mount -t proc proc /proc") from None


def _task_name(number: int) -> str:
    with suppress(OSError), open(f"/proc/self/task/{number}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return str(number)


# -- random numbers, and other values that differ in each process ------------------------------------------------------


def _is_used(name: str, seen: parsing.Parsing) -> bool:
    """Whether a module's own generator was seeded or drawn from."""
    if name == "random":
        return random.getstate() != seen.random
    module = sys.modules.get("numpy.random")
    if module is None:
        return False
    try:
        return int(module.get_state()[2]) != _FRESH_POSITION
    except (AttributeError, IndexError, TypeError, ValueError):  # another bit generator was set
        return True


def _unseeded(seen: parsing.Parsing) -> Iterator[str]:
    for name in ("random", "numpy.random"):
        if name in sys.modules and not _is_used(name, seen):
            yield name


def reseed(names: Iterable[str]) -> None:
    """Give modules a state from the system, as in a new process. ``numpy.random.seed()`` would take twice as long."""
    for name in names:
        module = sys.modules[name]
        if name == "random":
            random.seed()
        else:
            key = sys.modules["numpy"].frombuffer(os.urandom(4 * _WORDS), "uint32")
            module.set_state(("MT19937", key, _WORDS))


def _volatile_names(codes: Iterable[CodeType], namespace: dict[str, Any]) -> set[str]:
    """Names of functions in the top level of Snakefiles, and in their functions that it calls, that are volatile."""
    names: set[str] = set()
    stack = list(codes)
    while stack:
        code = stack.pop()
        loaded = {i.argval for i in dis.get_instructions(code) if i.opname in _LOADS}
        for name in loaded - names:
            value = namespace.get(name)
            if isinstance(value, FunctionType) and not is_library(value.__code__.co_filename):
                stack.append(value.__code__)
        names |= loaded
        # The code of a comprehension or of a class runs where it stands.
        stack += [c for c in code.co_consts if isinstance(c, CodeType) and re.match(r"<\w+(comp|expr)>", c.co_name)]
    return names & _VOLATILE


# -- the globals of a rule ---------------------------------------------------------------------------------------------


def _of_rules(workflow: Any, seen: parsing.Parsing) -> dict[str, list[Difference]]:
    """The evidence in the globals of each rule, and in its ``params``."""
    vanilla = workflow.vanilla_globals
    spaces: dict[int, list[Difference]] = {}  # rules of one module share their globals
    found: dict[str, list[Difference]] = {}
    for rule in workflow.rules:
        if not rule.is_run:
            continue
        namespace = rule.run_func.__globals__
        if id(namespace) not in spaces:
            names = sorted(_volatile_names(seen.codes, namespace))
            moments = [Difference(DifferenceKind.MOMENT, f"{name}()") for name in names]
            spaces[id(namespace)] = [*_objects(namespace, vanilla, seen), *moments]
        own = [*_objects({"params": list(rule.params)}, vanilla, seen), *_changed(rule.run_func, seen)]
        found[rule.name] = spaces[id(namespace)] + own
    return found


def _objects(namespace: dict[str, Any], vanilla: dict[str, Any], seen: parsing.Parsing) -> Iterator[Difference]:
    for name, value in objects(namespace, vanilla):
        what = live_object(value, seen.began)
        if what is not None:
            yield Difference(DifferenceKind.OBJECT, f"{what} in {name}")


def _changed(function: Any, seen: parsing.Parsing) -> Iterator[Difference]:
    namespace = function.__globals__
    for name in sorted(_names(function)) if seen.is_of(namespace) else ():
        if name in namespace and parsing.fingerprint(namespace[name]) != seen.values.get(name):
            yield Difference(DifferenceKind.CHANGED, name)


def _added_resources(function: Any) -> list[str]:
    """The resources that a block names, of those that a Snakemake started for one job adds to rules without them.

    For such a Snakemake, ``--default-resources`` has these defaults, unless the user's run has its own.
    """
    words: set[str] = set()
    stack = [function.__code__]
    while stack:
        code = stack.pop()
        has_resources = any(step.argval == "resources" for step in dis.get_instructions(code))
        words.update(code.co_names if has_resources else ())
        for value in code.co_consts:
            if isinstance(value, CodeType):
                stack.append(value)
            elif isinstance(value, str):
                words.update((value,) if has_resources else (), re.findall(r"\bresources\W+(\w+)", value))
    return [name for name in _ADDED_RESOURCES if name in words]


def _names(function: Any) -> set[str]:
    """The globals that a function uses, itself or in functions that it calls."""
    names: set[str] = set()
    stack = [function.__code__]
    while stack:
        code = stack.pop()
        stack += [c for c in code.co_consts if isinstance(c, CodeType)]
        for name in set(code.co_names) - names:
            value = function.__globals__.get(name)
            if isinstance(value, FunctionType) and value.__globals__ is function.__globals__:
                stack.append(value.__code__)
        names.update(code.co_names)
    return names


# -- files -------------------------------------------------------------------------------------------------------------


class _Files:
    """The files that the Snakefile has read, as they were before the first job."""

    def __init__(self, seen: parsing.Parsing) -> None:
        self._files = {path: _version(path) for path in seen.read}
        self._directories = {path: (_version(path, listed=True), _listing(path)) for path in seen.listed}
        self._patterns = {key: (_versions(paths), _matches(*key)) for key, paths in seen.patterns.items()}
        self._where = seen.patterns
        self._found: list[Difference] = []

    def stale(self) -> list[Difference]:
        """The first that has changed. It stays so: the forks have the old one."""
        if not self._found:
            self._found = [Difference(DifferenceKind.STALE, os.path.relpath(path)) for path in self._changed()][:1]
        return self._found

    def _changed(self) -> Iterator[str]:
        for path, version in self._files.items():
            if _version(path) != version:
                yield path
        for path, (version, names) in self._directories.items():
            if _version(path, listed=True) != version and _listing(path) != names:
                yield path
        for key, (versions, found) in self._patterns.items():
            now = _versions(self._where[key])
            if now != versions:
                if _matches(*key) != found:
                    yield key[1]
                self._patterns[key] = (now, found)


def _version(path: str, *, listed: bool = False) -> tuple[int, ...] | None:
    """The version of a file, or of a listing; of a directory that was only asked for, that it exists."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not listed and os.path.isdir(path):
        return (status.st_ino,)
    return status.st_ino, status.st_mtime_ns, status.st_size


def _versions(paths: Iterable[str]) -> list[tuple[int, ...] | None]:
    return [_version(path, listed=True) for path in paths]


def _listing(path: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(path)) - {".snakemake", ".forge-staging"}
    except OSError:
        return frozenset()


def _matches(regex: str, directory: str) -> frozenset[str]:
    """The names that ``glob_wildcards()`` would find."""
    found: set[str] = set()
    for here in walk(directory or ".", quiet=True, through_link=True):
        here.directories[:] = [name for name in here.directories if name not in (".snakemake", ".forge-staging")]
        paths = (os.path.normpath(os.path.join(here.path, name)) for name in (*here.files, *here.directories))
        found.update(path for path in paths if re.match(regex, path))
    return frozenset(found)
