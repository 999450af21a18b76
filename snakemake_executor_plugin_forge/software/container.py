"""Runtimes of the kind ``container``: Forge unpacks an image once, and jobs run in it within Forge's own sandbox.

podman, docker or apptainer fetch and unpack; none of them starts for a job. So a job in an image has limits, file
policy, scratch, record and verdicts like any other job, and starts in milliseconds: docs/decisions/0013.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from ..spec.catalog import Runtime, RuntimeKind
from ..spec.errors import BrokenRuntimeError, UsageError
from .activation import Activation, which
from .damage import Damage, Problem
from .store import Definition, Manifest, Report, locks, source_text

ENGINES = ("podman", "docker", "apptainer", "singularity")
"""Engines, in the order of preference: podman needs no daemon and no root."""

_ENGINE_SECONDS = 10.0  # to answer a question that no job depends on
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT = ("LANG", "LANGUAGE", "LC_ALL", "TERM", "TZ", "USER", "LOGNAME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
         "http_proxy", "https_proxy", "no_proxy")  # fmt: skip
"""Variables of Snakemake's environment that a job in an image sees; all others mean paths of the host."""
_OF_APPTAINER = ("HOME", "PWD", "OLDPWD", "SHLVL", "_", "PS1", "PROMPT_COMMAND", "TERM", "USER_PATH")


def define(runtime: Runtime) -> Definition | None:
    """The definition of the unpacked image; None for a directory, which is unpacked already.

    Raises:
        UsageError: for a missing archive or directory.
    """
    transport, _, place = runtime.source.partition(":")
    content = {"image": runtime.source}
    match transport:
        case "dir":
            if not os.path.isdir(f"{place}/bin") and not os.path.isdir(f"{place}/usr/bin"):
                raise UsageError(f"Runtime {runtime.name}: container: {place} is no root directory: it has no bin.")
            return None
        case "oci":
            content = {"index": source_text(f"{place}/index.json", f"Runtime {runtime.name}: container:")}
        case "oci-archive" | "docker-archive":
            name = "index.json" if transport == "oci-archive" else "manifest.json"
            content = {"index": _member(runtime, place, name)}
        case _:
            if place == "" and os.path.exists(transport):
                raise UsageError(
                    f"Runtime {runtime.name}: container: {transport} is a path. Say what it is: "
                    f"oci-archive:{transport}, docker-archive:{transport}, oci:{transport} or dir:{transport}. "
                    "(Of a .sif file, apptainer build --sandbox DIR FILE makes a directory.)"
                )
    return Definition(RuntimeKind.CONTAINER, runtime.source, content | {"machine": platform.machine()})


def _member(runtime: Runtime, archive: str, name: str) -> str:
    """The file of an image archive that holds the checksums of all others, and so identifies its content."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if os.path.normpath(member.name) == name and (file := tar.extractfile(member)) is not None:
                    return file.read().decode()
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise UsageError(f"Runtime {runtime.name}: container: {archive} cannot be read: {error}.") from None
    raise UsageError(f"Runtime {runtime.name}: container: {archive} is no image archive of this kind: no {name} in it.")


# -- unpacking ---------------------------------------------------------------------------------------------------------


def make(runtime: Runtime, prefix: str, report: Report) -> tuple[Mapping[str, str], dict[str, str]]:
    """Fetch and unpack the image.

    Returns:
        Its Debian packages, if it has any; its configuration.

    Raises:
        BrokenRuntimeError: with the engine's last words.
    """
    engine = next((found for name in ENGINES if (found := shutil.which(name))), None)
    if engine is None:
        raise UsageError(
            f"Runtime {runtime.name}: an image is unpacked with one of {', '.join(ENGINES)}, none of which is in PATH: "
            "apt-get install podman. A directory that is an image's root needs none of them: container: dir:PATH."
        )
    os.makedirs(prefix)
    if os.path.basename(engine) in ("apptainer", "singularity"):
        return _by_apptainer(engine, runtime, prefix, report)
    before = {line.removeprefix("sha256:") for line in _run([engine, "images", "-q", "--no-trunc"], runtime).split()}
    image = _fetch(engine, runtime, report)
    report("unpacking")
    name = f"forge-{secrets.token_hex(8)}"
    try:
        configuration = json.loads(_run([engine, "image", "inspect", image], runtime))[0]
        _run([engine, "create", "--name", name, "--network=none", image, "/bin/true"], runtime)
        _unpack([engine, "export", name], prefix, runtime)
    finally:
        subprocess.run([engine, "rm", name], capture_output=True, check=False)
        if is_archive(runtime.source) and image.removeprefix("sha256:") not in before:  # no longer needed
            subprocess.run([engine, "rmi", image], capture_output=True, check=False)
    env = dict(entry.split("=", 1) for entry in (configuration.get("Config") or {}).get("Env") or [] if "=" in entry)
    image_id = str(configuration.get("Id", ""))
    return packages(prefix), {"engine": os.path.basename(engine), "image": image_id, "env": json.dumps(env)}


def is_archive(source: str) -> bool:
    """Whether an image is a file or directory, and not a name."""
    return source.partition(":")[0] in ("oci-archive", "oci", "docker-archive")


def _fetch(engine: str, runtime: Runtime, report: Report) -> str:
    """Load the image into the engine's storage; return its name or id there."""
    transport, _, place = runtime.source.partition(":")
    if not is_archive(runtime.source):
        known = subprocess.run([engine, "image", "inspect", runtime.source], capture_output=True, check=False)
        if known.returncode != 0:
            report("fetching the image")
            _run([engine, "pull", "--quiet", runtime.source], runtime)
        return runtime.source
    report("loading the image")
    if os.path.basename(engine) == "podman":
        return _run([engine, "pull", "--quiet", runtime.source], runtime).split()[-1]
    if transport == "oci":
        raise BrokenRuntimeError(f"Runtime {runtime.name}: docker cannot load a directory ({place}); podman can.")
    try:
        said = _run([engine, "load", "--quiet", "--input", place], runtime)
    except BrokenRuntimeError as error:
        if transport != "oci-archive":
            raise
        raise BrokenRuntimeError(
            f"{error} docker can load OCI archives from version 25 on, and podman can; what docker save writes is "
            "docker-archive:FILE."
        ) from None
    return said.strip().rpartition(": ")[2]


def replaced(runtime: Runtime, manifest: Manifest) -> Problem | None:
    """The problem of a name that now means another image to the engine than the one that was unpacked."""
    then, engine = manifest.details.get("image", ""), shutil.which(manifest.details.get("engine", ""))
    if is_archive(runtime.source) or not then or engine is None:
        return None
    words = [engine, "image", "inspect", "--format", "{{.Id}}", runtime.source]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=_ENGINE_SECONDS
        )
    except subprocess.TimeoutExpired:  # jobs need no engine
        return None
    now = done.stdout.strip().removeprefix("sha256:")
    if done.returncode != 0 or not now or now == then.removeprefix("sha256:"):
        return None
    detail = f"to {os.path.basename(engine)} it is now {now[:12]}, and {then.removeprefix('sha256:')[:12]} was unpacked"
    return Problem(runtime.source, Damage.REPLACED, detail)


def _by_apptainer(
    engine: str, runtime: Runtime, prefix: str, report: Report
) -> tuple[Mapping[str, str], dict[str, str]]:
    source = runtime.source
    if not is_archive(source) and not source.endswith(".sif"):
        source = f"docker://{source}"
    report("unpacking")
    _run([engine, "build", "--force", "--sandbox", prefix, source], runtime)
    report("asking for its environment")
    ask = ["--cleanenv", "--containall", prefix, "env", "-0"]
    try:
        said = _run([engine, "exec", "--userns", *ask], runtime)
    except BrokenRuntimeError:  # without user namespaces its set-user-ID helper may work
        said = _run([engine, "exec", *ask], runtime)
    env = dict(entry.split("=", 1) for entry in said.split("\0") if "=" in entry)
    details = {"engine": os.path.basename(engine), "image": "", "env": json.dumps(_without_apptainers_own(env))}
    return packages(prefix), details


def _without_apptainers_own(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of an image, which apptainer keeps as scripts, without variables of apptainer's own container."""
    return {
        name: value
        for name, value in env.items()
        if name not in _OF_APPTAINER
        and not name.startswith(("APPTAINER_", "SINGULARITY_"))
        and (name, value) not in (("LANG", "C"), ("LD_LIBRARY_PATH", "/.singularity.d/libs"))
    }


def _unpack(export: list[str], prefix: str, runtime: Runtime) -> None:
    """Unpack an archive: as root with all owners; otherwise everything belongs to the user."""
    owners = ["--numeric-owner", "--same-owner"] if os.geteuid() == 0 else ["--no-same-owner"]
    tar = ["tar", "-x", "-p", *owners, "--exclude=./dev/*", "--exclude=dev/*", "-C", prefix]
    with subprocess.Popen(export, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as source:
        done = subprocess.run(tar, stdin=source.stdout, capture_output=True, text=True, check=False, pass_fds=locks())
        assert source.stderr is not None
        said = source.stderr.read().decode("utf-8", "replace")
    if source.returncode != 0 or done.returncode != 0:
        raise BrokenRuntimeError(f"Runtime {runtime.name}: its image cannot be unpacked: {(said + done.stderr)[-500:]}")


def _run(command: list[str], runtime: Runtime) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise BrokenRuntimeError(
            f"Runtime {runtime.name} ({runtime.source}): {' '.join(command)} failed with exit code {done.returncode}: "
            f"{done.stderr.strip()[-500:]}"
        )
    return done.stdout


def packages(root: str) -> dict[str, str]:
    """Debian packages of an image, with versions, from dpkg(1)'s status file."""
    try:
        text = Path(f"{root}/var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = {}
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if "Package" in fields and "Version" in fields:
            found[fields["Package"]] = fields["Version"]
    return found


def existing(runtime: Runtime) -> Manifest:
    """The manifest of a root directory that Forge did not unpack."""
    root = os.path.realpath(runtime.source.partition(":")[2])
    identity = f"container-{hashlib.sha256(root.encode()).hexdigest()[:16]}"
    return Manifest(identity, RuntimeKind.CONTAINER, runtime.source, root, packages(root), "", {"env": "{}"})


# -- activation --------------------------------------------------------------------------------------------------------


def activate(
    runtime: Runtime, manifest: Manifest, environment: Mapping[str, str], declared: frozenset[str]
) -> Activation:
    """The environment of the image instead of Snakemake's.

    Args:
        declared: names of variables that the workflow declares with ``envvars:``, which jobs see everywhere.
    """
    variables = {"PATH": _DEFAULT_PATH, **json.loads(manifest.details.get("env", "{}")), **runtime.env}
    if which("bash", variables["PATH"], manifest.prefix) is None:
        raise BrokenRuntimeError(
            f"Runtime {runtime.name}: there is no bash in the image {runtime.source} (PATH={variables['PATH']}), which "
            "Snakemake needs for shell commands."
        )
    kept = declared.union(KEPT, variables)
    return Activation(
        runtime=runtime.name,
        identity=manifest.identity,
        variables=variables,
        removed=tuple(sorted(environment.keys() - kept)),
        root=manifest.prefix,
    )
