"""The runtimes of one run: those that are needed are built where missing, looked at, activated once, and held.

The kinds differ in four verbs (define, make, verify, activate), each of which is one ``match`` here.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from ..catalog import Catalog, Kind, Runtime, choose
from ..errors import BrokenRuntimeError
from . import conda, container, venv
from .activation import Activation
from .health import Health, verify
from .store import Definition, Manifest, Report, Store, default_directory

_BUILDERS = 4


@dataclass(frozen=True, slots=True)
class State:
    """What ``runtimes list`` shows of one."""

    runtime: Runtime
    definition: Definition | None  # None: nothing is built for it
    manifest: Manifest | None  # None: it is not built, or nothing is built for it

    @property
    def word(self) -> str:
        """In one word."""
        if self.definition is None:
            return "ready"
        return "built" if self.manifest is not None else "missing"


class Runtimes:
    """Those of a catalog, for one run or one command."""

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        environment: Mapping[str, str],
        declared: frozenset[str] = frozenset(),
    ) -> None:
        """Nothing is looked at yet.

        Args:
            environment: of Snakemake, from which that of the jobs is made.
            declared: variables that the workflow declares with ``envvars:``.

        """
        self.catalog = catalog
        self.store = store
        self._environment = dict(environment)
        self._declared = declared
        self._activations: dict[str, Activation] = {}
        self._manifests: dict[str, Manifest] = {}  # by identity
        self._held: list[int] = []

    def choose(
        self, rule: str, resources: Mapping[str, object], *, uses_conda: bool, uses_container: bool
    ) -> Runtime | None:
        """See :func:`.catalog.choose`."""
        return choose(rule, resources, self.catalog, uses_conda=uses_conda, uses_container=uses_container)

    def state(self, runtime: Runtime) -> State:
        """Whether it is built.

        Raises:
            ForgeError: if its definition cannot be read.

        """
        definition = define(runtime)
        if definition is not None:
            return State(runtime, definition, self.store.manifest(definition.identity))
        return State(runtime, None, existing(runtime))

    def build(self, runtimes: Iterable[Runtime], report: Callable[[Runtime], Report], *, again: bool = False) -> None:
        """Build those that are missing, several at a time.

        Args:
            report: makes the :data:`.store.Report` of each.
            again: those that are there as well, and nothing from a cache that was not verified.

        Raises:
            ForgeError: of the first that cannot be built, when all others have ended.

        """
        wanted: dict[str, tuple[Runtime, Definition]] = {}
        for runtime in runtimes:
            definition = define(runtime)
            if definition is not None:
                wanted.setdefault(definition.identity, (runtime, definition))  # two names may mean the same
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
        for build in builds:
            build.result()

    def open(self, runtimes: Iterable[Runtime], report: Callable[[Runtime], Report]) -> None:
        """Have these ready for jobs: built, sound, activated.

        Raises:
            ForgeError: names the runtime, what is wrong with it, and the command that helps.

        """
        wanted = [r for r in {r.name: r for r in runtimes}.values() if r.name not in self._activations]
        self.build([r for r in wanted if self.state(r).word == "missing"], report)
        for runtime in wanted:
            self._refuse_damage(runtime)
        for runtime in wanted:
            self._activations[runtime.name] = self._activate(runtime)

    def health(self, runtime: Runtime, *, fully: bool = False) -> Health | None:
        """What a look at every file says; None if there is none to look at.

        Args:
            fully: see :func:`.health.verify`.

        """
        manifest = self.state(runtime).manifest
        return self.look(manifest, fully=fully) if manifest is not None else None

    def look(self, manifest: Manifest, *, fully: bool = False) -> Health:
        """The same for an environment that need not be of the catalog."""
        ours = self._is_ours(manifest)
        name = f"{manifest.identity}/verified.json" if ours else f"verified/{manifest.identity}.json"
        return verify(manifest.prefix, manifest.kind, f"{self.store.directory}/{name}", fully=fully)

    def _refuse_damage(self, runtime: Runtime) -> None:
        health = self.health(runtime)
        if health is not None and health.damage:
            raise BrokenRuntimeError(f"Runtime {runtime.name} is damaged: {in_words(health)} {self.cure(runtime)}")

    def cure(self, runtime: Runtime) -> str:
        """What to do about a damaged one: a sentence, with the command to type in the present directory."""
        if self.state(runtime).definition is None:
            return f"It is not of Forge's making: have whoever made {runtime.source} make it again."
        words = ["snakemake-forge runtimes check", runtime.name, "--repair"]
        if self.catalog.path is not None and os.path.dirname(self.catalog.path) != os.getcwd():
            words += ["--config", shlex.quote(self.catalog.path)]
        if self.store.directory != default_directory(self._environment):
            words += ["--runtimes-dir", shlex.quote(self.store.directory)]
        return f"Repair it with: {' '.join(words)}"

    def _activate(self, runtime: Runtime) -> Activation:
        manifest = self.state(runtime).manifest
        if manifest is not None:
            self._manifests[manifest.identity] = manifest
            fd = self.store.hold(manifest.identity) if self._is_ours(manifest) else None
            self._held += [fd] if fd is not None else []
        return activate(runtime, manifest, self._environment, self._declared)

    def _is_ours(self, manifest: Manifest) -> bool:
        return manifest.prefix == self.store.prefix(manifest.identity)

    def is_open(self, runtime: Runtime) -> bool:
        """Whether it is ready for jobs."""
        return runtime.name in self._activations

    def activation(self, runtime: Runtime) -> Activation:
        """What jobs in it get: worked out when it was opened; here and now for one that became known later.

        Raises:
            ForgeError: see :meth:`open`.

        """
        known = self._activations.get(runtime.name)
        if known is None:
            self.open([runtime], lambda _: _silent)
            known = self._activations[runtime.name]
        return known

    def adopt(self, activation: Activation, manifest: Manifest) -> None:
        """Take note of an environment that is not of the catalog."""
        self._activations[activation.runtime] = activation
        self._manifests[manifest.identity] = manifest

    def describe(self) -> dict[str, object]:
        """Those that are used, for ``run.json``: by identity."""
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
        sources = [r.source.removeprefix("dir:") for r in known if r.kind in (Kind.CONDA, Kind.CONTAINER)]
        return [self.store.directory, *sources, *(path for r in known for path in (*r.paths.read, *r.paths.write))]

    def close(self) -> None:
        """The run is over: they may be built again."""
        held, self._held = self._held, []
        for fd in held:
            os.close(fd)


def in_words(health: Health) -> str:
    """The damage in a sentence: the first files by name."""
    named = "; ".join(map(str, health.damage[:3]))
    more = len(health.damage) - 3
    return f"{named}{f'; and {more} more' if more > 0 else ''}."


def _silent(text: str) -> None:
    del text


def define(runtime: Runtime) -> Definition | None:
    """What is to be built for a runtime; None if nothing.

    Raises:
        ForgeError: if its files cannot be read.

    """
    match runtime.kind:
        case Kind.HOST:
            return None
        case Kind.VENV:
            return venv.define(runtime)
        case Kind.CONDA:
            return conda.define(runtime)
        case Kind.CONTAINER:
            return container.define(runtime)
        case _:
            assert_never(runtime.kind)


def existing(runtime: Runtime) -> Manifest | None:
    """What is known of a runtime for which nothing is built: the environment that is there already."""
    match runtime.kind:
        case Kind.CONDA:
            return conda.existing(runtime.name, runtime.source, runtime.source)
        case Kind.CONTAINER:
            return container.existing(runtime)
        case Kind.HOST | Kind.VENV:
            return None
        case _:
            assert_never(runtime.kind)


def make(
    runtime: Runtime, store: Store, prefix: str, report: Report, *, trust_cache: bool
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Make the environment of a runtime at a prefix; see :meth:`.store.Store.build`."""
    match runtime.kind:
        case Kind.VENV:
            return venv.make(runtime, prefix, report, trust_cache=trust_cache)
        case Kind.CONDA:
            return conda.make(runtime, store, prefix, report)
        case Kind.CONTAINER:
            return container.make(runtime, prefix, report)
        case Kind.HOST:
            raise AssertionError("nothing is built for the host")
        case _:
            assert_never(runtime.kind)


def activate(
    runtime: Runtime, manifest: Manifest | None, environment: Mapping[str, str], declared: frozenset[str]
) -> Activation:
    """What a job in a runtime differs in from Snakemake."""
    match runtime.kind:
        case Kind.HOST:
            return Activation(runtime.name, variables=runtime.env)
        case Kind.VENV:
            assert manifest is not None
            return venv.activate(runtime, manifest, environment)
        case Kind.CONDA:
            assert manifest is not None
            return conda.activate(runtime, manifest, environment)
        case Kind.CONTAINER:
            assert manifest is not None
            return container.activate(runtime, manifest, environment, declared)
        case _:
            assert_never(runtime.kind)
