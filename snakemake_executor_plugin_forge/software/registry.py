"""The runtimes of one run: built where missing, checked, activated once, and held.

The kinds differ in four verbs (define, make, verify, activate), each of which is one ``match`` here.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import assert_never

from ..spec.catalog import Catalog, Runtime, RuntimeKind
from ..spec.errors import BrokenRuntimeError
from . import conda, container, host_fit, image_files, venv
from .activation import Activation
from .damage import Damage, Health, Problem
from .health import Built, verify
from .repair import by_hand
from .store import Definition, Manifest, Report, Store, default_directory

_BUILDERS = 4


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """The state of one runtime, for ``runtimes list``."""

    runtime: Runtime
    definition: Definition | None  # None: Forge builds nothing for it
    manifest: Manifest | None  # None: it is not built, or Forge builds nothing for it

    @property
    def word(self) -> str:
        """The state in one word."""
        if self.definition is None:
            return "ready"
        return "built" if self.manifest is not None else "missing"


class Runtimes:
    """The runtimes of a catalog, for one run or one command."""

    def __init__(
        self, catalog: Catalog, store: Store, environment: Mapping[str, str], declared: frozenset[str] = frozenset()
    ) -> None:
        """Check nothing yet.

        Args:
            environment: Snakemake's, the base of the jobs' environment.
            declared: variables that the workflow declares with ``envvars:``.
        """
        self.catalog = catalog
        self.store = store
        self._environment = environment  # no copy: secrets would be in the memory of jobs that are forks
        self._declared = declared
        self._activations: dict[str, Activation] = {}
        self._manifests: dict[str, Manifest] = {}  # by identity
        self._held: dict[str, int] = {}  # by identity

    def state(self, runtime: Runtime) -> RuntimeState:
        """The state of a runtime.

        Raises:
            ForgeError: if its definition cannot be read.
        """
        definition = define(runtime)
        if definition is not None:
            return RuntimeState(runtime, definition, self.store.manifest(definition.identity))
        match runtime.kind:
            case RuntimeKind.CONDA:
                manifest = conda.existing(runtime.name, runtime.source, runtime.source)
            case RuntimeKind.CONTAINER:
                manifest = container.existing(runtime)
            case RuntimeKind.HOST | RuntimeKind.VENV:
                return RuntimeState(runtime, None, None)
            case _:
                assert_never(runtime.kind)
        return RuntimeState(runtime, None, manifest)

    def build(self, runtimes: Iterable[Runtime], report: Callable[[Runtime], Report], *, again: bool = False) -> None:
        """Build those that are missing, several at a time.

        Args:
            report: makes the :data:`.store.Report` of each.
            again: rebuild existing ones too, and use nothing from an unverified cache.

        Raises:
            ForgeError: of the first failed build, after all others have ended; of all of them, if they are broken.
        """
        wanted: dict[str, tuple[Runtime, Definition]] = {}
        for runtime in runtimes:
            definition = define(runtime)
            if definition is not None:
                wanted.setdefault(definition.identity, (runtime, definition))  # two names may mean one environment
        with ThreadPoolExecutor(max_workers=_BUILDERS, thread_name_prefix="forge-build") as pool:
            builds = [
                pool.submit(
                    self.store.build,
                    definition,
                    partial(make, runtime, self.store, trust_cache=not again),
                    report(runtime),
                    again=again,
                )
                for runtime, definition in wanted.values()
            ]
        broken = [error for build in builds if isinstance(error := build.exception(), BrokenRuntimeError)]
        for build in builds:
            if not isinstance(build.exception(), BrokenRuntimeError):
                build.result()
        if broken:
            raise BrokenRuntimeError("\n".join(map(str, broken)))

    def open(self, runtimes: Iterable[Runtime], report: Callable[[Runtime], Report]) -> None:
        """Prepare runtimes for jobs: build, check, activate.

        Raises:
            ForgeError: names the runtime, its problem, and the command that helps.
        """
        named = sorted({r.name: r for r in runtimes}.items())  # in an order that every run has
        wanted = [runtime for name, runtime in named if name not in self._activations]
        said: list[str] = []
        try:
            self.build([r for r in wanted if self.state(r).word == "missing"], report)
        except BrokenRuntimeError as error:  # the others may have problems, too, which the user wants to know now
            said.append(str(error))
        for runtime in wanted:
            manifest = self._hold(runtime)  # before the check, after which nobody may rebuild it
            health = self.look(manifest) if manifest is not None else None
            if health is not None and health.damage:
                advice = self.cure(runtime, health.damage)
                said.append(f"Runtime {runtime.name} is damaged: {in_words(health.damage)} {advice}")
            elif health is not None and (edited := [p for p in health.problems if p.fault is Damage.EDITED]):
                report(runtime)(f"{in_words(edited)} Jobs get it as it is.")
        if said:
            raise BrokenRuntimeError("\n".join(said))
        for runtime in wanted:
            for problem in self.replaced(runtime):
                report(runtime)(
                    f"{problem}; jobs get what was installed. To install what is there now: {self._repair(runtime)}"
                )
            self._activations[runtime.name] = self._activate(runtime)

    def replaced(self, runtime: Runtime, *, fully: bool = False) -> list[Problem]:
        """Return sources that now have other contents than was installed: an image by its name, packages of a channel.

        Args:
            fully: ask channels too, which may need the network.
        """
        state = self.state(runtime)
        if state.definition is None or state.manifest is None:
            return []
        if runtime.kind is RuntimeKind.CONTAINER:
            problem = container.replaced(runtime, state.manifest)
            return [problem] if problem is not None else []
        if runtime.kind is RuntimeKind.CONDA and fully:
            return conda.replaced(self.store, state.manifest)
        return []

    def look(self, manifest: Manifest, *, fully: bool = False) -> Health:
        """Check every file of an environment, which may be missing in the catalog.

        Args:
            fully: see :func:`.health.verify`.
        """
        ours = self.store.has(manifest)
        name = f"{manifest.identity}/verified.json" if ours else f"verified/{manifest.identity}.json"
        built = Built(manifest.packages, manifest.details.get("libc")) if ours else None
        set_up_ns = conda.set_up_ns(manifest.prefix) if not ours else None
        memory = f"{self.store.directory}/{name}"
        return verify(manifest.prefix, manifest.kind, memory, built=built, set_up_ns=set_up_ns, fully=fully)

    def cure(self, runtime: Runtime, damage: Sequence[Problem] = ()) -> str:
        """The advice for a damaged runtime: a sentence with the command to type in the present directory."""
        state = self.state(runtime)
        if runtime.kind is RuntimeKind.HOST:
            return by_hand(replace(runtime, source=sys.prefix), own_environment(), damage)
        if state.definition is None:
            return by_hand(runtime, state.manifest, damage)
        other = any(problem.fault in (Damage.C_LIBRARY, Damage.MACHINE) for problem in damage)
        apart = " (Hosts that differ in this need stores of their own: --forge-runtimes-dir.)" if other else ""
        return f"Repair it with: {self._repair(runtime)}{apart}"

    def _repair(self, runtime: Runtime) -> str:
        words = ["snakemake-forge runtimes check", runtime.name, "--repair"]
        if self.catalog.path is not None and os.path.dirname(self.catalog.path) != os.getcwd():
            words += ["--config", shlex.quote(self.catalog.path)]
        if self.store.directory != default_directory(self._environment):
            words += ["--runtimes-dir", shlex.quote(self.store.directory)]
        return " ".join(words)

    def _hold(self, runtime: Runtime) -> Manifest | None:
        """Hold the environment of a runtime, and return its manifest, which nobody replaces from now on."""
        manifest = self.state(runtime).manifest
        if manifest is None or not self.store.has(manifest):
            return manifest
        if manifest.identity not in self._held:
            fd = self.store.hold(manifest.identity)
            self._held |= {manifest.identity: fd} if fd is not None else {}
        return self.store.manifest(manifest.identity)

    def _activate(self, runtime: Runtime) -> Activation:
        manifest = self.state(runtime).manifest
        if manifest is not None:
            self._manifests[manifest.identity] = manifest
        return activate(runtime, manifest, self._environment, self._declared)

    def is_open(self, runtime: Runtime) -> bool:
        """Whether it is ready for jobs."""
        return runtime.name in self._activations

    def activation(self, runtime: Runtime) -> Activation:
        """The activation for jobs, determined by :meth:`open`, or now for a runtime that became known later.

        Raises:
            ForgeError: see :meth:`open`.
        """
        if not self.is_open(runtime):
            self.open([runtime], lambda _: lambda _: None)
        return self._activations[runtime.name]

    def adopt(self, activation: Activation, manifest: Manifest) -> None:
        """Add an environment that the catalog lacks."""
        self._activations[activation.runtime] = activation
        self._manifests[manifest.identity] = manifest

    def describe(self) -> dict[str, object]:
        """The environments in use, by identity, for ``run.json``."""
        return {
            manifest.identity: {
                "kind": str(manifest.kind),
                "source": manifest.source,
                "prefix": manifest.prefix,
                "created": manifest.created,
                "packages": dict(manifest.packages),
                "activations": {
                    name: {"variables": dict(activation.variables), "removed": list(activation.removed)}
                    for name, activation in self._activations.items()
                    if activation.identity == manifest.identity
                },
                **manifest.details,
            }
            for manifest in self._manifests.values()
        }

    def paths(self) -> list[str]:
        """Paths that jobs need although no rule declares them."""
        known = self.catalog.runtimes.values()
        sources = [r.source.removeprefix("dir:") for r in known if r.kind in (RuntimeKind.CONDA, RuntimeKind.CONTAINER)]
        return [self.store.directory, *sources, *(path for r in known for path in (*r.paths.read, *r.paths.write))]

    def environments(self) -> list[str]:
        """Directories of environments, in which no job may write, wherever they are."""
        known = self.catalog.runtimes.values()
        prefixes = [r.source for r in known if r.kind is RuntimeKind.CONDA and os.path.isdir(r.source)]
        return [self.store.directory, *prefixes]

    def close(self) -> None:
        """Release the environments at the end of the run, so that they may be rebuilt."""
        held, self._held = self._held, {}
        for fd in held.values():
            os.close(fd)


def own_environment() -> Manifest:
    """The environment in which Snakemake runs, for a check by hand: every run relies on it, and none looks at it."""
    kind = RuntimeKind.CONDA if os.path.isdir(f"{sys.prefix}/conda-meta") else RuntimeKind.VENV
    identity = f"host-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:16]}"
    return Manifest(identity, kind, sys.prefix, sys.prefix, {}, "")


def in_words(problems: Sequence[Problem]) -> str:
    """Problems in a sentence: the first files by name."""
    named = "; ".join(map(str, problems[:3]))
    more = len(problems) - 3
    return f"{named}{f'; and {more} more' if more > 0 else ''}."


def define(runtime: Runtime) -> Definition | None:
    """The definition of a runtime's environment; None if Forge builds nothing.

    Raises:
        ForgeError: if its files cannot be read.
    """
    match runtime.kind:
        case RuntimeKind.HOST:
            return None
        case RuntimeKind.VENV:
            return venv.define(runtime)
        case RuntimeKind.CONDA:
            return conda.define(runtime)
        case RuntimeKind.CONTAINER:
            return container.define(runtime)
        case _:
            assert_never(runtime.kind)


def make(
    runtime: Runtime, store: Store, prefix: str, report: Report, *, trust_cache: bool
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Make the environment of a runtime at a prefix; see :meth:`.store.Store.build`."""
    match runtime.kind:
        case RuntimeKind.VENV:
            packages, details = venv.make(runtime, prefix, report, trust_cache=trust_cache)
        case RuntimeKind.CONDA:
            packages, details = conda.make(runtime, store, prefix, report)
        case RuntimeKind.CONTAINER:
            made = container.make(runtime, prefix, report)
            report("listing its files")
            image_files.write_list(prefix)
            return made
        case RuntimeKind.HOST:
            raise AssertionError("nothing is built for the host")
        case _:
            assert_never(runtime.kind)
    return packages, {**details, "libc": host_fit.describe(prefix, runtime.kind)}


def activate(
    runtime: Runtime, manifest: Manifest | None, environment: Mapping[str, str], declared: frozenset[str]
) -> Activation:
    """The activation of a runtime, relative to Snakemake's environment."""
    if runtime.kind is RuntimeKind.HOST:
        return Activation(runtime.name, variables=runtime.env)
    assert manifest is not None
    match runtime.kind:
        case RuntimeKind.VENV:
            return venv.activate(runtime, manifest, environment)
        case RuntimeKind.CONDA:
            return conda.activate(runtime, manifest, environment)
        case RuntimeKind.CONTAINER:
            return container.activate(runtime, manifest, environment, declared)
        case _:
            assert_never(runtime.kind)
