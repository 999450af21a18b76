"""A run as a Workflow Run RO-Crate, in the profile that describes single jobs: Provenance Run Crate 0.5.

https://w3id.org/ro/wfrun/provenance/0.5. The crate holds only facts from the records and the disk: checksums describe
the present files, and a file that has changed since its job is marked. An output whose size and time are still those on
record gets the checksum on record, without being read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote_from_bytes

from ..kernel.tree import remove_tree
from ..record.checksum import ALGORITHM, WHOLE, file_digest
from ..record.index import Index, Row, Selection
from ..spec.errors import UsageError, require
from ..spec.printable import printable
from .attempt_log import read_spec
from .explain import job_in_words

_PROFILES = (
    ("https://w3id.org/ro/wfrun/process/0.5", "Process Run Crate", "0.5"),
    ("https://w3id.org/ro/wfrun/workflow/0.5", "Workflow Run Crate", "0.5"),
    ("https://w3id.org/ro/wfrun/provenance/0.5", "Provenance Run Crate", "0.5"),
    ("https://w3id.org/workflowhub/workflow-ro-crate/1.0", "Workflow RO-Crate", "1.0"),
)
_TERMS = "https://w3id.org/ro/terms/workflow-run/context"
_USAGE = ("cpu_seconds", "memory_peak_bytes", "io_read_bytes", "io_write_bytes")
_UNITS = {"seconds": "https://qudt.org/vocab/unit/SEC", "bytes": "https://qudt.org/vocab/unit/BYTE"}
_TYPES: dict[type, str] = {bool: "Boolean", int: "Integer", float: "Float"}
_LATER_SECONDS = 2.0  # file systems and the clock of the verdict differ by less
_LICENSE = "https://spdx.org/licenses/"


@dataclass(slots=True)
class _Attempts:
    """The attempts of a run with their specs, and the maker of each file."""

    found: list[tuple[Row, Row]] = field(default_factory=list)  # verdict, spec
    made: dict[str, _Made] = field(default_factory=dict)  # by path


@dataclass(frozen=True, slots=True)
class _Made:
    """An output at the end of its job."""

    end: datetime  # of the job
    recorded: Row  # see staging/checks.py; empty if there is none

    def checksum(self, status: os.stat_result) -> str | None:
        """The checksum on record, if it covers the whole file and size and time are unchanged."""
        on_record, recorded = str(self.recorded.get("checksum")), self.recorded
        same = (recorded.get("bytes"), recorded.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
        is_whole = recorded.get("kind") == "file" and recorded.get("covers") == WHOLE
        return on_record.removeprefix("sha256:") if same and is_whole and on_record.startswith("sha256:") else None


@dataclass(frozen=True, slots=True)
class Written:
    """The result of writing a crate."""

    directory: str
    jobs: int
    files: int
    missing: int  # files that no longer exist
    changed: int  # files younger than the job that made them


def write_crate(index: Index, run: str, directory: str, *, copy: bool, license_: str | None) -> Written:
    """Write a run as an RO-Crate.

    Args:
        directory: must not exist yet, or be empty.
        copy: copy inputs and outputs into the crate; otherwise it names their places.
        license_: an SPDX identifier or address for the crate's content; None: not stated.

    Raises:
        UsageError: if the library is missing, the directory is in use, or the record has no workflow.
    """
    if os.path.exists(directory) and (not os.path.isdir(directory) or os.listdir(directory)):
        raise UsageError(f"{directory} is in use. Name a directory that does not exist yet.")
    record = dict(index.runs())[run]
    snakefile = str((record.get("workflow") or {}).get("snakefile") or "")
    if not os.path.isfile(snakefile):
        what = f"its Snakefile is not at {snakefile} any more" if snakefile else "it was made by an older Forge"
        raise UsageError(f"Run {run} cannot be made a crate: {what}.")
    writer = _Writer(record, _read(index, run), copy=copy)
    writer.describe(license_)
    place, name = os.path.split(os.path.abspath(directory))
    unfinished = f"{place}/.{name}.{os.getpid()}"
    try:
        writer.crate.write(unfinished)
        os.rename(unfinished, os.path.abspath(directory))  # a reader sees the whole of it; over an empty directory too
    except OSError as error:
        raise UsageError(f"{directory} cannot be written: {error.strerror}.") from None
    finally:
        remove_tree(unfinished)
    return Written(directory, len(writer.attempts.found), len(writer.files), writer.missing, writer.changed)


def _read(index: Index, run: str) -> _Attempts:
    attempts = _Attempts()
    for record in index.records(Selection(run=run)):
        spec = read_spec(record["directory"])
        if spec is None or record["outcome"] == "running":
            continue
        attempts.found.append((record, spec))
        if record["outcome"] == "succeeded":
            recorded = {output["path"]: output for output in record.get("outputs") or ()}
            for path in spec["outputs"]:
                attempts.made[_absolute(spec, path)] = _Made(_end(record), recorded.get(path, {}))
    return attempts


def _absolute(spec: Row, path: str) -> str:
    return path if "://" in path else os.path.join(spec["workdir"], path)


def _end(record: Row) -> datetime:
    return datetime.fromisoformat(record["started"]) + timedelta(seconds=record["seconds"])


class _Writer:
    """Builds the crate entity by entity."""

    def __init__(self, run: Row, attempts: _Attempts, *, copy: bool) -> None:
        module = require("rocrate.rocrate", "provenance")
        self._model = require("rocrate.model.contextentity", "provenance")
        self.crate = module.ROCrate(version="1.1")  # version 0.5 of the profiles builds on it
        self.crate.metadata.extra_contexts.append(_TERMS)
        self.run = run
        self.attempts = attempts
        self.files: dict[str, Any] = {}
        self.missing = self.changed = 0
        self._copy = copy
        self._workdir = run["workdir"]
        self._ended = {"endTime": run["ended"]} if run.get("ended") else {}

    def describe(self, license_: str | None) -> None:
        """Describe the whole run."""
        run, root = self.run, self.crate.root_dataset
        root["name"] = f"Snakemake run {run['run']}"
        root["description"] = (
            f"Run {run['run']} of {os.path.basename(run['workflow']['snakefile'])} on {run['host']}, "
            f"recorded by Forge: {run['isolation']}"
        )
        root["license"] = self._license(license_)
        root["conformsTo"] = [self._entity(i, "CreativeWork", name=n, version=v) for i, n, v in _PROFILES]
        agent = self._entity(f"#user-{_quote(run['user'])}", "Person", name=run["user"])
        root["author"] = agent
        engine = self._engine()
        workflow = self._workflow()
        environments: dict[str, set[str]] = {}
        for record, spec in self.attempts.found:
            environments.setdefault(record["rule"], set()).update(filter(None, [spec.get("runtime_id")]))
        steps = {rule: self._step(workflow, rule, sorted(used)) for rule, used in sorted(environments.items())}
        workflow["step"] = [step for step, _ in steps.values()]
        workflow["hasPart"] = [tool for _, tool in steps.values()]
        controls, jobs = [], []
        for record, spec in self.attempts.found:
            step, tool = steps[record["rule"]]
            jobs.append(self._job(record, spec, tool, agent))
            name = os.path.basename(record["directory"])
            about = {"name": f"Start of {name}", "instrument": step, "object": jobs[-1]}
            controls.append(self._entity(f"#control-{_quote(name)}", "ControlAction", **about))
        whole = self._whole(workflow, agent)
        organize = self._entity(
            "#organize", "OrganizeAction", name="Snakemake with Forge", instrument=engine, agent=agent, object=controls,
            result=whole, startTime=run["started"], **self._ended,
        )  # fmt: skip
        root["mentions"] = [whole, organize, *jobs]
        for entity in self.crate.get_entities():  # names of files are bytes, and the crate is text
            for key, value in entity.properties().items():
                if isinstance(value, str) and not key.startswith("@"):
                    entity[key] = printable(value, "\n\t")

    def _entity(self, identifier: str, kind: str, **properties: Any) -> Any:
        entity = self.crate.add(self._model.ContextEntity(self.crate, identifier, properties={"@type": kind}))
        for key, value in properties.items():
            entity[key] = value
        return entity

    def _license(self, name: str | None) -> Any:
        """The profile asks for one."""
        if name is None:
            return "not stated: ask those who own the files"
        address = name if ":" in name else f"{_LICENSE}{name}"
        return self._entity(address, "CreativeWork", name=name, description=f"The licence {name}")

    def _engine(self) -> Any:
        versions = self.run.get("versions") or {}
        forge = self._entity(
            "#forge", "SoftwareApplication", name="snakemake-executor-plugin-forge",
            softwareVersion=versions.get("forge", "unknown"),
        )  # fmt: skip
        others = [
            self._entity(f"#{name}", "SoftwareApplication", name=name, softwareVersion=version)
            for name, version in sorted(versions.items())
            if name not in ("forge", "snakemake")
        ]
        return self._entity(
            "#snakemake", "SoftwareApplication", name="Snakemake", url="https://snakemake.github.io",
            softwareVersion=versions.get("snakemake", "unknown"), softwareRequirements=[forge, *others],
        )  # fmt: skip

    def _workflow(self) -> Any:
        facts = self.run["workflow"]
        base = os.path.dirname(facts["snakefile"])
        workflow = self.crate.add_workflow(
            facts["snakefile"], _inside(facts["snakefile"], base, "workflow"), main=True,
            properties={"@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]}, lang="snakemake",
            lang_version=(self.run.get("versions") or {}).get("snakemake"),
        )  # fmt: skip
        workflow["name"] = os.path.basename(facts["snakefile"])
        for path in dict.fromkeys([*facts["sources"], *facts["configfiles"]]):
            if os.path.isfile(path) and path != facts["snakefile"]:
                self.crate.add_file(path, _inside(path, base, "workflow"), properties={"sha256": _sha256(path)})
        return workflow

    def _step(self, workflow: Any, rule: str, environments: list[str]) -> tuple[Any, Any]:
        name = _quote(rule)
        tool = self._entity(f"{workflow.id}#rule-{name}", "SoftwareApplication", name=f"rule {rule}")
        if environments:
            tool["softwareRequirements"] = [self._environment(identity) for identity in environments]
        return self._entity(f"{workflow.id}#step-{name}", "HowToStep", name=rule, workExample=tool), tool

    def _environment(self, identity: str) -> Any:
        """A runtime's environment with its packages, as recorded by the run."""
        name = f"#environment-{_quote(identity, safe='')}"
        known = self.crate.get(name)
        if known is not None:
            return known
        facts = (self.run.get("runtimes") or {}).get(identity) or {}
        packages = [
            self._entity(f"{name}-{_quote(package)}", "SoftwareApplication", name=package, softwareVersion=str(version))
            for package, version in sorted((facts.get("packages") or {}).items())
        ]
        kind = f"{facts.get('kind', 'environment')} {facts.get('source') or ''}".strip()
        environment = self._entity(name, "SoftwareApplication", name=kind, softwareVersion=identity)
        if packages:
            environment["softwareRequirements"] = packages
        return environment

    def _whole(self, workflow: Any, agent: Any) -> Any:
        """The run of the workflow: from files that no job made to files that jobs made."""
        used = {_absolute(spec, path) for _, spec in self.attempts.found for path in spec["inputs"]}
        failed = any(record["outcome"] != "succeeded" for record, _ in self.attempts.found)
        return self._entity(
            "#run", "CreateAction", name=f"Run {self.run['run']}", instrument=workflow, agent=agent,
            description=" ".join(self.run["command"]), startTime=self.run["started"],
            object=[*self._files(sorted(used - set(self.attempts.made))), *self._parameters(workflow)],
            result=list(self._files(sorted(self.attempts.made))),
            actionStatus=_status(not failed), **self._ended,
        )  # fmt: skip

    def _parameters(self, workflow: Any) -> Iterator[Any]:
        """The workflow's configuration in force."""
        formal = []
        for key, value in sorted((self.run["workflow"].get("config") or {}).items()):
            parameter = self._entity(
                f"{workflow.id}#param-{_quote(key)}", "FormalParameter", name=key,
                additionalType=_TYPES.get(type(value), "Text"),
                conformsTo={"@id": "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"},
            )  # fmt: skip
            formal.append(parameter)
            plain = value if isinstance(value, str | int | float | bool) else str(value)
            yield self._entity(f"#param-{_quote(key)}", "PropertyValue", name=key, value=plain, exampleOfWork=parameter)
        if formal:
            workflow["input"] = formal

    def _job(self, record: Row, spec: Row, tool: Any, agent: Any) -> Any:
        name = os.path.basename(record["directory"])
        ok = record["outcome"] == "succeeded"
        job = self._entity(
            f"#job-{_quote(name)}", "CreateAction", name=f"{job_in_words(record)}, attempt {record['attempt']}",
            instrument=tool, agent=agent,
            description=spec["command"] or f"Python of rule {record['rule']} ({spec['how']})",
            startTime=record["started"], endTime=_end(record).isoformat(), actionStatus=_status(ok),
            object=list(self._files(_absolute(spec, path) for path in spec["inputs"])),
            result=list(self._files(_absolute(spec, path) for path in spec["outputs"])) if ok else [],
        )  # fmt: skip
        if not ok:
            job["error"] = record["reason"]
        job["resourceUsage"] = [
            self._entity(f"#usage-{_quote(name)}-{key}", "PropertyValue", name=key, propertyID=f"forge:{key}",
                         value=record["usage"][key], unitCode=_UNITS[key.rpartition("_")[2]])
            for key in _USAGE
            if key in record["usage"]
        ]  # fmt: skip
        return job

    def _files(self, paths: Iterable[str]) -> Iterator[Any]:
        """Entities of files or directories; each path is examined once."""
        for path in paths:
            if path not in self.files:
                self.files[path] = self._file(path)
            yield self.files[path]

    def _file(self, path: str) -> Any:
        name = os.path.relpath(path, self._workdir) if "://" not in path else path
        properties: dict[str, Any] = {"name": name}
        if "://" in path:
            return self.crate.add_file(path, properties=properties)
        if os.path.isdir(path):
            if self._copy:
                return self.crate.add_dataset(path, _inside(path, self._workdir, "data"), properties=properties)
            return self.crate.add_dataset(f"file://{_quote(path)}/", properties=properties)
        try:
            status = os.stat(path)
        except OSError:
            self.missing += 1
            text = "was not there any more when this crate was made"
            return self._entity(f"#gone-{_quote(path)}", "CreativeWork", description=text, **properties)
        made = self.attempts.made.get(path)
        checksum = (made and made.checksum(status)) or _sha256(path)
        properties |= {"contentSize": str(status.st_size), "sha256": checksum}
        properties["dateModified"] = datetime.fromtimestamp(status.st_mtime).astimezone().isoformat()
        if made is not None and status.st_mtime > made.end.timestamp() + _LATER_SECONDS:
            self.changed += 1
            properties["description"] = "has changed after the job that made it: the checksum is of what it is now"
        if self._copy:
            return self.crate.add_file(path, _inside(path, self._workdir, "data"), properties=properties)
        return self.crate.add_file(f"file://{_quote(path)}", properties=properties)


def _status(ok: bool) -> str:
    return f"http://schema.org/{'CompletedActionStatus' if ok else 'FailedActionStatus'}"


def _inside(path: str, base: str, directory: str) -> str:
    """The place of a file in the crate: its path below ``base``, or its whole path if it lies elsewhere."""
    relative = os.path.relpath(path, base)
    return f"{directory}/{relative if not relative.startswith('..') else path.lstrip('/')}"


def _sha256(path: str) -> str:
    with suppress(OSError):
        return file_digest(path, ALGORITHM)
    return ""


def _quote(text: str, safe: str = "/") -> str:
    """A name of any bytes as a part of an address."""
    return quote_from_bytes(text.encode("utf-8", "surrogateescape"), safe)
