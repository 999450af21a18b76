"""Which software environment each of Snakemake's jobs gets: the catalog's, or the rule's own ``conda:``.

Snakemake activates a rule's own environment in a shell, for every job anew, and asks ``conda`` three things before
that. Here its activation is run once for each environment; its effect is what the jobs get.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from snakemake_interface_executor_plugins.settings import DeploymentMethod

from .calls import argument, in_environment
from .catalog import FILE_NAME, HOST, Catalog, Kind, Runtime
from .errors import BrokenRuntimeError, UsageError
from .record.crates import check_store
from .runtimes.activation import IN_IMAGE, Activation, capture
from .runtimes.registry import Runtimes, in_words
from .runtimes.store import Manifest, Store, default_directory
from .runtimes.surroundings import problems

_BLOCKED = ("R_LIBS", "PYTHONPATH", "PERLLIB", "PERL5LIB")
"""What Snakemake takes away where a rule has ``conda:``: snakemake/shell.py."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one job runs, as far as software is concerned."""

    runtime: Runtime
    activation: Activation | None  # None: Snakemake does what there is to do
    arguments: tuple[Any, ...]  # for run_wrapper
    is_plain: bool  # a shell command comes down to a command

    @property
    def identity(self) -> str | None:
        """That of the environment, as in ``run.json``."""
        return self.activation.identity if self.activation is not None else None

    @property
    def root(self) -> str | None:
        """That of its image."""
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
        # bubblewrap: what comes closest without an engine. In snakemake-forge shell the image is there already.
        return (
            f"inside={shlex.quote(f'set -euo pipefail; {inside}')}\n"
            f'if [ -n "${{{IN_IMAGE}-}}" ]; then exec bash -c "$inside"; fi\n'
            f'bwrap --ro-bind {shlex.quote(self.activation.root)} / --proc /proc --dev /dev --tmpfs /tmp --bind "$PWD" '
            '"$PWD" --chdir "$PWD" bash -c "$inside"'
        )

    def refuse_elsewhere(self, job: Any) -> None:
        """Refuse a job that a second Snakemake would run on another host, where that knows nothing of the runtime.

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
        """The activation that a second Snakemake is started with, which does the rest by itself.

        Raises:
            UsageError: for a script, for which it would not take the runtime's interpreter.

        """
        if self.activation is None or self.runtime.name.startswith("conda:"):  # it activates that one by itself
            return None
        if (self.activation.prefix is not None and not job.is_shell) or self.activation.root is not None:
            raise UsageError(
                f"Rule {job.rule.name}: something among its params cannot be pickled, so a second Snakemake would "
                f"have to run it, which the runtime {self.runtime.name} does not allow. Pass plain values as params."
            )
        return self.activation


class Deployment:
    """The environments of a run, as Snakemake's jobs see them."""

    def __init__(self, workflow: Any, settings: Any, notice: Callable[[str], None]) -> None:
        """Read the catalog, if there is one.

        Raises:
            UsageError: for whatever is wrong in it.

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

    def crates(self) -> str | None:
        """The catalog's provenance store, if it has one, ready to be written.

        Raises:
            UsageError: if it cannot be.

        """
        store = self.catalog.provenance
        if store is not None:
            check_store(store, f"{self.catalog.path}: provenance:")
        return store

    def open(self, jobs: Iterable[Any], engine: Any) -> None:
        """Have ready what these jobs need, before the first of them runs.

        Raises:
            ForgeError: for a runtime that is not known, cannot be built or is damaged.

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
            elif self._conda and job.conda_env and not (self._container and job.container_img):
                self._activate_own(job, job.conda_env.address)
        engine.open_runtimes(needed.values(), self._report)
        scratch = engine.config.scratch_dir or tempfile.gettempdir()
        for problem in problems({"working directory": os.getcwd(), "scratch": scratch}):
            self._notice(f"Forge: {problem}.")

    def _report(self, runtime: Runtime) -> Callable[[str], None]:
        return lambda text: self._notice(f"Forge: runtime {runtime.name}: {text}")

    def _choose(self, job: Any, resources: Mapping[str, object]) -> Runtime | None:
        return self.runtimes.choose(
            job.rule.name,
            resources,
            uses_conda=bool(self._conda and job.conda_env),
            uses_container=bool(self._container and job.container_img),
        )

    def declared(self) -> tuple[str, ...]:
        """Variables that jobs have to have beside those that the workflow declares."""
        modules = DeploymentMethod.ENV_MODULES in self._workflow.deployment_settings.deployment_method
        return ("BASH_ENV", "ENV") if modules else ()  # where the command "module" comes from, in a shell of a job

    def runtime(self, job: Any) -> Runtime:
        """What a job will run in; for one that :meth:`place` will refuse, the host."""
        try:
            return self._choose(job, dict(job.resources.items())) or Runtime(own_name(job))
        except UsageError:
            return Runtime(HOST)

    def place(self, job: Any, arguments: tuple[Any, ...]) -> Place:
        """The environment of a job that is about to run.

        Args:
            arguments: of run_wrapper, as Snakemake would pass them.

        Raises:
            ForgeError: see :meth:`open`.

        """
        runtime = self._choose(job, dict(job.resources.items()))
        wrapped = bool(argument(arguments, "container_img") or argument(arguments, "env_modules"))
        if runtime is None:
            address = argument(arguments, "conda_env")
            if address is None or wrapped:  # inside a container, or with modules: Snakemake knows how
                return Place(Runtime(own_name(job)), None, arguments, is_plain=False)
            with self._lock:
                runtime = Runtime(own_name(job), Kind.CONDA)
                is_new = not self.runtimes.is_open(runtime)
                activation = self._activate_own(job, address)
        else:
            refuse_in_container(job, runtime)
            with self._lock:
                is_new = not self.runtimes.is_open(runtime)
                activation = self.runtimes.activation(runtime)
        if is_new:  # known only since a checkpoint
            self._engine.record_runtimes()
        # Commands need no more than the variables; a script is told where its interpreter is.
        prefix = activation.prefix if job.is_script or job.is_notebook or job.is_wrapper else None
        if not wrapped:
            arguments = in_environment(arguments, prefix)
        return Place(runtime, None if activation.changes_nothing else activation, arguments, is_plain=not wrapped)

    def _activate_own(self, job: Any, address: str) -> Activation:
        """The environment of a rule's ``conda:``, activated as Snakemake does it for every job, but once.

        Args:
            address: its prefix, or its name where it is one of the user's.

        Raises:
            ForgeError: if it cannot be activated.

        """
        name = own_name(job)
        if address in self._own:
            known, manifest = self._own[address]
            if known.runtime != name:  # the same environment, of another file
                known = replace(known, runtime=name)
                self.runtimes.adopt(known, manifest)
            return known
        from snakemake.deployment.conda import Conda  # not above: most workflows need none of it
        from snakemake.shell import shell

        from .runtimes import conda

        script = Conda(prefix_path=self._workflow.conda_base_path).shellcmd(address, ":")
        kept = () if shell.conda_block_conflicting_envvars else _BLOCKED
        clean = {k: v for k, v in os.environ.items() if k in kept or k not in _BLOCKED}
        changed, removed = capture(script, clean, f"The activation of {name} ({address})")
        manifest = conda.existing(name, name, changed.get("CONDA_PREFIX", address))
        health = self.runtimes.look(manifest)
        if health.damage:
            raise BrokenRuntimeError(
                f"Rule {job.rule.name}: its environment {name} is damaged: {in_words(health)} Have it made again: "
                f"rm -r {manifest.prefix}, and start Snakemake as before."
            )
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


def refuse_in_container(job: Any, runtime: Runtime) -> None:
    """Only a shell command can run in an image: all else needs Snakemake and its Python, which are not in there.

    Raises:
        UsageError: names rule and runtime.

    """
    if runtime.kind is Kind.CONTAINER and (not job.is_shell or job.benchmark):
        what = "benchmark:" if job.is_shell else "run:, script:, notebook: or wrapper:"
        raise UsageError(
            f"Rule {job.rule.name} has {what}, for which Snakemake's own Python is needed in the job, and gets the "
            f"runtime {runtime.name}, an image that does not have it. Use shell:, or a runtime of another kind. "
            "(With container: and --software-deployment-method apptainer, Snakemake itself runs scripts in images.)"
        )


def own_name(job: Any) -> str:
    """What to call a rule's own environment: "conda:" or "container:" and what the rule says."""
    env = job.conda_env
    if env is None:
        return f"container:{job.container_img_url}"
    return f"conda:{env.name or env.dir or env.file.simplify_path()}"


def read_catalog(asked: Any) -> Catalog:
    """The catalog that was asked for, the one in the working directory, or an empty one.

    Raises:
        UsageError: if the one that was asked for is not there, and for whatever is wrong in it.

    """
    if asked is None and not os.path.isfile(FILE_NAME):
        return Catalog()
    from . import catalog_file  # not above: takes a tenth of a second, and most workflows have none

    path = catalog_file.find(str(asked) if asked else None, os.getcwd())
    return catalog_file.load(path) if path is not None else Catalog()


def known_resources(rule: Any) -> dict[str, object]:
    """The resources of a rule that are known without a job: plain values, no functions."""
    known: dict[str, object] = {}
    for name, resource in rule.resources.items():
        if callable(resource):
            continue
        if hasattr(resource, "is_evaluable"):  # Snakemake >= 9.14 wraps them
            if not resource.is_evaluable():
                known[name] = resource.value
        else:
            known[name] = resource
    return known
