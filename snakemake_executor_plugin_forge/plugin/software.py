"""Choice of the software environment of each of Snakemake's jobs: the catalog's, or the rule's own ``conda:``.

Snakemake activates a rule's own environment in a shell for every job, after three calls of ``conda``. Forge runs its
activation once for each environment, and gives the jobs its effect.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from snakemake_interface_executor_plugins.settings import DeploymentMethod

from ..kernel.imports import OwnImports
from ..software.activation import IN_IMAGE, Activation, capture
from ..software.registry import Runtimes, in_words
from ..software.repair import by_hand
from ..software.store import Manifest, Store, default_directory
from ..software.surroundings import problems
from ..spec.catalog import HOST, Catalog, Runtime, RuntimeKind, choose, of_rule
from ..spec.errors import BrokenRuntimeError, UsageError
from ..spec.job import Config
from ..spec.paths import CATALOG_FILE
from .rule_resources import known_resources
from .snakemake_internals import argument, in_environment, is_local, runtime_paths

_BLOCKED = ("R_LIBS", "PYTHONPATH", "PERLLIB", "PERL5LIB")
"""Variables that Snakemake removes where a rule has ``conda:``: snakemake/shell.py."""


@dataclass(frozen=True, slots=True)
class Place:
    """The software environment of one job."""

    runtime: Runtime
    activation: Activation | None  # None: Snakemake itself activates the environment, or there is none
    arguments: tuple[Any, ...]  # for run_wrapper
    is_plain: bool  # whether a shell rule comes down to a command

    @property
    def identity(self) -> str | None:
        """The key of the environment in ``run.json``."""
        return self.activation.identity if self.activation is not None else None

    @property
    def root(self) -> str | None:
        """The directory of its image."""
        return self.activation.root if self.activation is not None else None

    def by_hand(self, command: str | None) -> str | None:
        """Shell text that runs the command in the environment; None where only Snakemake can."""
        if command is None or not self.is_plain:
            return None
        if self.activation is None:
            return command
        inside = self.activation.as_shell() + command
        if self.activation.root is None:
            return inside
        # bubblewrap comes closest without an engine. In snakemake-forge shell the process is in the image already.
        return (
            f"inside={shlex.quote(f'set -euo pipefail; {inside}')}\n"
            f'if [ -n "${{{IN_IMAGE}-}}" ]; then exec bash -c "$inside"; fi\n'
            f'bwrap --ro-bind {shlex.quote(self.activation.root)} / --proc /proc --dev /dev --tmpfs /tmp --bind "$PWD" '
            '"$PWD" --chdir "$PWD" bash -c "$inside"'
        )

    def refuse_elsewhere(self, job: Any) -> None:
        """Refuse a job for which a second Snakemake, which does not know the runtime, would run on another host.

        Raises:
            UsageError: names rule and runtime.
        """
        if self.activation is not None and not self.runtime.name.startswith("conda:"):
            raise UsageError(
                f"Rule {job.rule.name}: on another host only a plain shell command can run in a runtime of the catalog "
                f"({self.runtime.name}), and this rule needs a second Snakemake there (script:, run:, notebook:, "
                "wrapper:, benchmark:, or params that cannot be pickled). Add it to localrules, or use conda: in the "
                "rule with --software-deployment-method conda."
            )

    def for_inner_snakemake(self, job: Any) -> Activation | None:
        """The activation with which Forge starts a second Snakemake, which does the rest by itself.

        Raises:
            UsageError: for a script: a second Snakemake would not use the runtime's interpreter.
        """
        if self.activation is None or self.runtime.name.startswith("conda:"):  # Snakemake activates conda: by itself
            return None
        if (self.activation.prefix is not None and not job.is_shell) or self.activation.root is not None:
            raise UsageError(
                f"Rule {job.rule.name}: something among its params cannot be pickled, so a second Snakemake would "
                f"have to run it, which the runtime {self.runtime.name} does not allow. Pass plain values as params."
            )
        return self.activation


class Deployment:
    """The software environments of a run's jobs."""

    def __init__(self, workflow: Any, settings: Any, notice: Callable[[str], None]) -> None:
        """Read the catalog, if there is one.

        Raises:
            UsageError: for every mistake in it.
        """
        self._workflow = workflow
        self._notice = notice
        self.catalog = read_catalog(settings.config)
        directory = str(settings.runtimes_dir) if settings.runtimes_dir else default_directory(os.environ)
        self.runtimes = Runtimes(self.catalog, Store(directory), os.environ, frozenset(workflow.envvars))
        methods = workflow.deployment_settings.deployment_method
        self._lock = threading.Lock()  # members of groups and fetches from the cache come in threads
        self._engine: Any = None
        self._own: dict[str, tuple[Activation, Manifest]] = {}  # conda: of rules, by prefix or name
        self._conda = DeploymentMethod.CONDA in methods
        self._container = DeploymentMethod.APPTAINER in methods
        self._modules = DeploymentMethod.ENV_MODULES in methods

    def visible(self, jobs: Iterable[Any]) -> tuple[str, ...]:
        """Paths outside the working directory that jobs need although no rule declares them."""
        workflow, persistence = self._workflow, self._workflow.persistence
        paths = (
            workflow.basedir,
            sys.prefix,
            sys.base_prefix,
            *(p for p in sys.path if os.path.isdir(p)),
            *(os.path.dirname(str(f)) for f in (*workflow.included_stack, *workflow.linemaps, *workflow.configfiles)),
            workflow.sourcecache.cache_path,
            workflow.sourcecache.runtime_cache_path,
            persistence.conda_env_path,
            persistence.container_img_path,
            workflow.deployment_settings.conda_prefix,
            workflow.deployment_settings.apptainer_prefix,
            *runtime_paths(workflow),
            *self._of_users(jobs),
        )
        found = (os.fspath(p) for p in paths if p and not str(p).startswith(("http:", "https:")))
        return (*found, *self.runtimes.paths())

    def _of_users(self, jobs: Iterable[Any]) -> Iterator[str]:
        """Environments of the user that rules name: under ``strict``, and in /tmp, jobs would not see them."""
        own = [job.conda_env for job in jobs if self._has_own(job)]
        names = {env.name for env in own if env.name}
        yield from {os.path.abspath(env.dir) for env in own if env.dir}
        base = self._workflow.conda_base_path
        if names and base is not None:
            from snakemake.deployment.conda import Conda  # not above: most workflows need none of it

            yield base
            yield from (prefix for prefix in Conda().info["envs"] if os.path.basename(prefix) in names)

    def _has_own(self, job: Any) -> bool:
        return bool(self._conda and job.conda_env and not (self._container and job.container_img))

    def open(self, jobs: Iterable[Any], engine: Any) -> None:
        """Make the environments of these jobs ready before the first job runs.

        Raises:
            ForgeError: for a runtime that the catalog does not have, that cannot be built or is damaged.
        """
        needed: dict[str, Runtime] = {}
        self._engine = engine
        resources: dict[Any, dict[str, object]] = {}
        for job in jobs:
            if job.rule not in resources:
                resources[job.rule] = known_resources(job.rule)
            runtime = self._choose(job, resources[job.rule])
            if runtime is not None:
                refuse_in_container(job, runtime)
                needed[runtime.name] = runtime
            elif self._has_own(job):
                self._activate_own(job, job.conda_env.address)
        said = list(self._load_modules(resources, engine.config))
        try:
            engine.open_runtimes(needed.values(), self._report)
        except BrokenRuntimeError as error:
            said.append(str(error))
        if said:
            raise BrokenRuntimeError("\n".join(said))
        scratch = engine.config.scratch_dir or tempfile.gettempdir()
        for problem in problems({"working directory": os.getcwd(), "scratch": scratch}):
            self._notice(f"Forge: {problem}.")

    def _load_modules(self, rules: Iterable[Any], config: Config) -> Iterator[str]:
        """Load the ``envmodules:`` of rules that run on this host, each set once; yield why one cannot be loaded."""
        if not self._modules:
            return
        with OwnImports():
            from ..software import modules  # not above: few workflows have any

        sets: dict[tuple[str, ...], Any] = {}
        for rule in rules:
            if rule.env_modules and (config.backend == "local" or is_local(self._workflow, rule)):
                sets.setdefault(tuple(rule.env_modules.names), rule)
        for names, rule in sets.items():
            try:
                for text in modules.check(rule.name, names, os.environ):
                    self._notice(f"Forge: {text}.")
            except BrokenRuntimeError as error:
                yield str(error)

    def check(self, jobs: Iterable[Any]) -> None:
        """Refuse runtimes that rules cannot have, without making any ready.

        Raises:
            UsageError: for a runtime that the catalog does not have, or that cannot run the rule.
        """
        for job in {job.rule: job for job in jobs}.values():
            runtime = self._choose(job, known_resources(job.rule))
            if runtime is not None:
                refuse_in_container(job, runtime)

    def _report(self, runtime: Runtime) -> Callable[[str], None]:
        return lambda text: self._notice(f"Forge: runtime {runtime.name}: {text}")

    def _choose(self, job: Any, resources: Mapping[str, object]) -> Runtime | None:
        return choose(
            job.rule.name,
            resources,
            self.runtimes.catalog,
            uses_conda=bool(self._conda and job.conda_env),
            uses_container=bool(self._container and job.container_img),
        )

    def declared(self) -> tuple[str, ...]:
        """Variables that jobs need beside those that the workflow declares."""
        # Where the command "module" comes from, in a shell of a job.
        return ("BASH_ENV", "ENV") if self._modules else ()

    def runtime(self, job: Any) -> Runtime:
        """The runtime of a job; the host for a job that :meth:`place` will refuse."""
        try:
            return self._choose(job, dict(job.resources.items())) or self._own_runtime(job, RuntimeKind.HOST)
        except UsageError:
            return Runtime(HOST)

    def place(self, job: Any, arguments: tuple[Any, ...]) -> Place:
        """The environment of a job that is about to run.

        Args:
            arguments: the arguments that Snakemake would pass to run_wrapper.

        Raises:
            ForgeError: see :meth:`open`.
        """
        runtime = self._choose(job, dict(job.resources.items()))
        wrapped = bool(argument(arguments, "container_img") or argument(arguments, "env_modules"))
        address = argument(arguments, "conda_env") if runtime is None else None
        if runtime is not None:
            refuse_in_container(job, runtime)
        elif address is None or wrapped:  # inside a container, or with modules: Snakemake activates it
            return Place(self._own_runtime(job, RuntimeKind.HOST), None, arguments, is_plain=False)
        else:
            runtime = self._own_runtime(job, RuntimeKind.CONDA)
        with self._lock:
            is_new = not self.runtimes.is_open(runtime)
            activation = self.runtimes.activation(runtime) if address is None else self._activate_own(job, address)
        if is_new:  # Snakemake knows it only since a checkpoint
            self._engine.write_record()
        # Commands need only the variables; Snakemake has to know where the interpreter of a script is.
        prefix = activation.prefix if job.is_script or job.is_notebook or job.is_wrapper else None
        if not wrapped:
            arguments = in_environment(arguments, prefix)
        return Place(runtime, None if activation.changes_nothing else activation, arguments, is_plain=not wrapped)

    def _own_runtime(self, job: Any, kind: RuntimeKind) -> Runtime:
        return of_rule(own_name(job), kind, self.catalog)

    def _activate_own(self, job: Any, address: str) -> Activation:
        """Activate the environment of a rule's ``conda:`` once, as Snakemake does it for every job.

        Args:
            address: its prefix, or its name if it is an environment of the user.

        Raises:
            ForgeError: if it cannot be activated.
        """
        name = own_name(job)
        if address in self._own:
            known, manifest = self._own[address]
            if known.runtime != name:  # another file describes the same environment
                known = replace(known, runtime=name)
                self.runtimes.adopt(known, manifest)
            return known
        from snakemake.deployment.conda import Conda  # not above: most workflows need none of it
        from snakemake.shell import shell

        with OwnImports():
            from ..software import conda

        script = Conda(prefix_path=self._workflow.conda_base_path).shellcmd(address, ":")
        kept = () if shell.conda_block_conflicting_envvars else _BLOCKED
        clean = {k: v for k, v in os.environ.items() if k in kept or k not in _BLOCKED}
        changed, removed = capture(script, clean, f"The activation of {name} ({address})")
        prefix = conda.prefix_of(address, clean, changed)
        if prefix is None:
            raise BrokenRuntimeError(
                f"Rule {job.rule.name}: its environment {name} cannot be activated: conda finds none by this name. "
                "To list them: conda env list."
            )
        manifest = conda.existing(name, name, prefix)
        self._refuse_damage(job, manifest)
        blocked = {k for k in os.environ if k not in clean}
        activation = Activation(
            runtime=name,
            identity=manifest.identity,
            prefix=manifest.prefix,
            python=conda.python_version(manifest.prefix),
            variables=changed,
            removed=tuple(sorted({*removed, *blocked} - changed.keys())),
        )
        self.runtimes.adopt(activation, manifest)
        self._own[address] = activation, manifest
        return activation

    def _refuse_damage(self, job: Any, manifest: Manifest) -> None:
        health = self.runtimes.look(manifest)
        if health.damage:
            again = f"To build it again: rm -r {manifest.prefix}, and start Snakemake as before."
            if job.conda_env.is_externally_managed:  # Snakemake would not build it
                again = by_hand(Runtime(manifest.source, source=manifest.prefix), manifest, health.damage)
            raise BrokenRuntimeError(
                f"Rule {job.rule.name}: its environment {manifest.source} is damaged: {in_words(health.damage)} {again}"
            )


def refuse_in_container(job: Any, runtime: Runtime) -> None:
    """Refuse to run anything but a shell command in an image, which has neither Snakemake nor its Python.

    Raises:
        UsageError: names rule and runtime.
    """
    if runtime.kind is RuntimeKind.CONTAINER and (not job.is_shell or job.benchmark):
        what = "benchmark:" if job.is_shell else "run:, script:, notebook: or wrapper:"
        raise UsageError(
            f"Rule {job.rule.name} has {what}, for which Snakemake's own Python is needed in the job, and gets the "
            f"runtime {runtime.name}, an image that does not have it. Use shell:, or a runtime of another kind. "
            "(With container: and --software-deployment-method apptainer, Snakemake itself runs scripts in images.)"
        )


def own_name(job: Any) -> str:
    """Name of a rule's own environment: "conda:" or "container:" and the value in the rule."""
    env = job.conda_env
    if env is None:
        return f"container:{job.container_img_url}"
    return f"conda:{env.name or env.dir or env.file.simplify_path()}"


def read_catalog(asked: Any) -> Catalog:
    """Read the catalog that the user names or the working directory has, or return an empty one.

    Raises:
        UsageError: if the catalog that the user names does not exist, and for every mistake in it.
    """
    if asked is None and not os.path.isfile(CATALOG_FILE):
        return Catalog()
    with OwnImports():  # not above: takes a tenth of a second, and most workflows have none
        from ..software import catalog_file

    path = catalog_file.find(str(asked) if asked else None, os.getcwd())
    return catalog_file.load(path) if path is not None else Catalog()
