"""Runtimes of the kind ``conda``, without conda: py-rattler solves and installs; existing prefixes stay unchanged.

py-rattler is the extra ``[conda]``. Forge needs it to build environments, not for those of Snakemake's own
``--sdm conda``.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..spec.catalog import Runtime, RuntimeKind
from ..spec.errors import BrokenRuntimeError, UsageError
from . import channels, requirements, safe_yaml
from .activation import CONFLICTING, Activation, capture
from .damage import Problem
from .safe_yaml import UnfitYamlError
from .store import Definition, Manifest, Report, Store, source_text
from .venv import by_pip, normalized, run_tool, site_packages

if TYPE_CHECKING:
    from rattler import RepoDataRecord

T = TypeVar("T")

OF_PIP = " pypi_0"
"""The build of what pip has installed, as conda list says it."""

_THREADS_SECONDS = 0.1
_EXPLICIT = "@EXPLICIT"
_NO_RATTLER = (
    "Runtimes of the kind conda need py-rattler: pip install 'snakemake-executor-plugin-forge[conda]' in the "
    "environment of Snakemake. (Rules with conda: of their own and --software-deployment-method conda do not.)"
)


def define(runtime: Runtime) -> Definition | None:
    """The definition of the environment; None for an existing prefix.

    Raises:
        UsageError: for an unreadable file, and for a directory that is no environment.
    """
    source = runtime.source
    if os.path.isdir(source):
        if not os.path.isdir(f"{source}/conda-meta"):
            raise UsageError(f"Runtime {runtime.name}: conda: {source} is no environment: it has no conda-meta in it.")
        return None
    text = source_text(source, f"Runtime {runtime.name}: conda:")
    content = {"file": text, "machine": platform.machine()}
    directory, listed = os.path.dirname(source), _listed(text)
    if any(str(channel).startswith(".") for channel in listed.get("channels") or []):
        content["directory"] = directory  # on which the meaning of a relative path depends
    content |= requirements.describe("\n".join(_for_pip(listed)), source, directory)
    return Definition(RuntimeKind.CONDA, source, content)


def _content(runtime: Runtime, text: str) -> Any:
    """The content of a definition.

    Raises:
        UsageError: if it is no YAML.
    """
    try:
        return safe_yaml.load(text)[1]
    except UnfitYamlError as error:
        raise UsageError(f"Runtime {runtime.name}: {runtime.source}, line {error.line}: {error}.") from None


def _listed(text: str) -> Mapping[str, Any]:
    """The content of an environment file; nothing for other files, and for an invalid one, which the build refuses."""
    try:
        content = None if _EXPLICIT in text else safe_yaml.load(text)[1]
    except UnfitYamlError:
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("dependencies"), list) else {}


def _for_pip(listed: Mapping[str, Any]) -> list[str]:
    """The lines under pip:."""
    parts = [part for part in listed.get("dependencies") or [] if isinstance(part, dict)]
    return [str(item) for part in parts for item in part.get("pip") or []]


# -- building ----------------------------------------------------------------------------------------------------------


def make(runtime: Runtime, store: Store, prefix: str, report: Report) -> tuple[Mapping[str, str], dict[str, str]]:
    """Solve and install.

    It checks every package in the cache against its checksums before use, and fetches it again if they differ: files of
    environments are hard links into the cache, so that damage to one file damages both.

    Returns:
        Packages with versions, and no details.

    Raises:
        BrokenRuntimeError: with the message of the solver or the installer.
    """
    rattler = _rattler()
    try:
        records = _resolve(runtime, store, report)
        channels.check_archives(runtime.source, records)
        report(f"installing {len(records)} packages")
        place, verified = f"{store.packages}/pkgs", rattler.ValidationMode.full()
        os.makedirs(place, exist_ok=True)
        options = {
            "package_cache": rattler.PackageCache.new_layered([place], validation_mode=verified),
            "platform": _platform(),
            "execute_link_scripts": True,
            "show_progress": False,
        }
        _wait_for(rattler.install(records, prefix, **options))
    except UsageError:
        raise
    except BrokenRuntimeError as error:
        raise BrokenRuntimeError(f"Runtime {runtime.name} ({runtime.source}) cannot be built: {error}") from None
    except Exception as error:
        said = str(error)[:1000]
        more = f". {channels.advice(runtime.source)}" if "hash mismatch" in said else ""
        raise BrokenRuntimeError(
            f"Runtime {runtime.name} ({runtime.source}) cannot be built: {type(error).__name__}: {said}{more}"
        ) from error
    os.makedirs(f"{prefix}/conda-meta", exist_ok=True)
    for aux in glob.glob(f"{glob.escape(os.path.splitext(runtime.source)[0])}.*"):
        if aux.endswith((".post-deploy.sh", ".pin.txt")):
            report(f"{aux} is for rules with conda:, and has no effect on a runtime")
    listed = _listed(Path(runtime.source).read_text(encoding="utf-8"))
    variables = listed.get("variables")
    if isinstance(variables, dict):  # each activation sets what this file says, as conda's own does
        state = {"version": 1, "env_vars": {str(name): str(value) for name, value in variables.items()}}
        Path(f"{prefix}/conda-meta/state").write_text(json.dumps(state), encoding="utf-8")
    _install_pip(runtime, listed, prefix, report)
    return packages(prefix), {}


def _wait_for(result: Awaitable[T]) -> T:
    """Run a coroutine of py-rattler.

    A thread of the library delivers the result, and needs the interpreter once more right afterwards. If this process
    ends at that moment, it ends with a segmentation fault: https://github.com/PyO3/pyo3-async-runtimes/issues/40.
    """
    import asyncio  # slow, and every use of a catalog imports this module

    async def wait() -> T:
        return await result

    try:
        return asyncio.run(wait())
    finally:
        time.sleep(_THREADS_SECONDS)


def _rattler() -> Any:
    try:
        import rattler
        import rattler.shell
    except ImportError:
        raise UsageError(_NO_RATTLER) from None
    return rattler


def _platform() -> Any:
    return _rattler().platform.Subdir.current()


def _resolve(runtime: Runtime, store: Store, report: Report) -> list[RepoDataRecord]:
    """The packages of a definition, read according to the kind of file."""
    text = Path(runtime.source).read_text(encoding="utf-8")
    if _EXPLICIT in text:
        checksums = channels.explicit(text)
        report(f"reading {len(checksums)} packages")
        records = _wait_for(_solve(store, [], list(checksums)))
        channels.add_checksums(records, checksums)
        return records
    content = _content(runtime, text)
    if isinstance(content, dict) and "dependencies" in content:
        sources, specs = _environment_file(runtime, content)
        report("solving")
        return _wait_for(_solve(store, sources, specs))
    return _locked(runtime)


def _environment_file(runtime: Runtime, content: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    directory = os.path.dirname(runtime.source)
    channels = [str(c) for c in content.get("channels") or [] if c and c != "nodefaults"]
    channels = [f"file://{os.path.abspath(os.path.join(directory, c))}" if c[0] in "./" else c for c in channels]
    specs = [str(d) for d in content["dependencies"] or [] if isinstance(d, str)]
    if not channels:
        raise UsageError(f"Runtime {runtime.name}: {runtime.source} names no channels, where packages would come from.")
    return channels, specs


async def _solve(store: Store, sources: list[str], specs: list[str]) -> list[RepoDataRecord]:
    rattler = _rattler()
    records: list[RepoDataRecord] = await rattler.solve(
        sources=sources,
        specs=specs,
        gateway=_gateway(store),
        platforms=[_platform(), "noarch"],
        virtual_packages=rattler.VirtualPackage.detect(),
    )
    return records


def _gateway(store: Store) -> Any:
    return _rattler().Gateway(cache_dir=f"{store.packages}/repodata")


def replaced(store: Store, manifest: Manifest) -> list[Problem]:
    """The packages for which their channels now have another checksum; none where no channel can be reached."""
    try:
        return _wait_for(channels.replaced(_gateway(store), [_platform(), "noarch"], manifest.prefix))
    except Exception:  # of any kind, from a library in Rust: there may be no network
        return []


def _locked(runtime: Runtime) -> list[RepoDataRecord]:
    """Package addresses of pixi.lock and conda-lock.yml."""
    rattler = _rattler()
    try:
        environment = rattler.LockFile.from_path(Path(runtime.source)).default_environment()
    except Exception as error:
        raise UsageError(
            f"Runtime {runtime.name}: {runtime.source} is none of these: an environment file (with dependencies:), "
            f"a list with {_EXPLICIT}, a lock file of pixi or conda-lock: {error}"
        ) from None
    current = str(_platform())
    for locked in environment.platforms() if environment is not None else []:
        if str(getattr(locked, "name", locked)) == current:
            return list(environment.conda_repodata_records_for_platform(locked) or [])
    raise UsageError(f"Runtime {runtime.name}: {runtime.source} has no packages for {current}.")


def _install_pip(runtime: Runtime, listed: Mapping[str, Any], prefix: str, report: Report) -> None:
    """The pip: part of an environment file."""
    wanted = _for_pip(listed)
    if not wanted:
        return
    report("installing what pip: lists")
    options = [word for item in wanted for word in item.split(maxsplit=1 if item.startswith("-") else 0)]
    command = [f"{prefix}/bin/python", "-m", "pip", "install", "--no-input", "--quiet", *options]
    # As conda does it, in the environment: with its compilers, and without packages in ~/.local, which jobs do not see.
    environment = dict(os.environ)
    activate(Runtime(runtime.name), existing(runtime.name, runtime.source, prefix), environment).apply(environment)
    run_tool(command, runtime, f"pip cannot install {', '.join(wanted)}", environment)


# -- what is there -----------------------------------------------------------------------------------------------------


def installed(prefix: str) -> dict[str, tuple[str, str]]:
    """Every package: version and build, and the path of its record: of conda, and of pip, which conda does not know."""
    records = glob.glob(f"{glob.escape(prefix)}/conda-meta/*-*-*.json")
    parts = ((os.path.basename(path).removesuffix(".json").rsplit("-", 2), path) for path in records)
    found = {name: (f"{version} {build}", path) for (name, version, build), path in parts}
    names = {normalized(name): name for name in found}
    for site in site_packages(prefix):
        for name, info in by_pip(site).items():
            version = os.path.basename(info).removesuffix(".dist-info").partition("-")[2]
            known = names.get(name, name)
            if known not in found or found[known][0].split()[0] != version:  # some packages of conda say pip, too
                found[known] = f"{version}{OF_PIP}", info
    return found


def packages(prefix: str) -> dict[str, str]:
    """Every package with version and build."""
    return {name: version for name, (version, _) in installed(prefix).items()}


def python_version(prefix: str) -> tuple[int, int] | None:
    """The version of the interpreter in an environment; None if it has none."""
    version = packages(prefix).get("python")
    if version is None or not os.path.exists(f"{prefix}/bin/python"):
        return None
    major, minor = version.split()[0].split(".")[:2]
    return int(major), int(minor)


def existing(runtime: str, source: str, prefix: str) -> Manifest:
    """The manifest of a prefix that Forge did not make."""
    found = packages(prefix)
    text = json.dumps([os.path.realpath(prefix), sorted(found.items())])
    identity = f"conda-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return Manifest(identity, RuntimeKind.CONDA, source, os.path.realpath(prefix), found, "", {"name": runtime})


def set_up_ns(prefix: str) -> int | None:
    """The time when Snakemake's post-deploy script had set an environment up; None without a script.

    Source: snakemake/deployment/conda.py.
    """
    with suppress(OSError):
        os.stat(f"{prefix}.post-deploy.sh")
        return os.stat(f"{prefix}.env_setup_done").st_mtime_ns
    return None


def prefix_of(address: str, before: Mapping[str, str], changed: Mapping[str, str]) -> str | None:
    """The prefix of an environment that was activated; None if the activation had no effect.

    Args:
        address: its prefix, or its name.
        before: the environment in which it was activated; it may have been active there, and changes nothing then.
        changed: the variables that have changed.
    """
    was_active = os.path.basename(before.get("CONDA_PREFIX", "")) == address or address == "base"
    known = before.get("CONDA_PREFIX") if was_active else None
    prefix = address if os.path.isabs(address) else changed.get("CONDA_PREFIX", known)
    return prefix if prefix and os.path.isdir(f"{prefix}/conda-meta") else None


# -- activation --------------------------------------------------------------------------------------------------------


def activate(runtime: Runtime, manifest: Manifest, environment: Mapping[str, str]) -> Activation:
    """The effect of ``conda activate``, including hooks in ``activate.d``, which run once.

    Raises:
        BrokenRuntimeError: if a hook fails.
    """
    shell = _rattler().shell
    clean = {k: v for k, v in environment.items() if k not in CONFLICTING}
    current = environment.get("CONDA_PREFIX")
    script = shell.activate(
        Path(manifest.prefix),
        shell.ActivationVariables(current_prefix=Path(current) if current else None),
        shell.Shell.bash,
    ).script
    changed, removed = capture(script, clean, f"Runtime {runtime.name}: the activation of {manifest.prefix}")
    # Packages in ~/.local belong to no environment, and Python would prefer them to those of this one.
    variables = {"CONDA_DEFAULT_ENV": manifest.prefix, "PYTHONNOUSERSITE": "1", **changed, **runtime.env}
    gone = {*removed, *(variable for variable in CONFLICTING if variable in environment)}
    return Activation(
        runtime=runtime.name,
        identity=manifest.identity,
        prefix=manifest.prefix,
        python=python_version(manifest.prefix),
        variables=variables,
        removed=tuple(sorted(gone - variables.keys())),
    )
