"""The sandbox of an attempt as JSON, and back: what another one like it is made of. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from ..errors import UsageError
from ..model import (
    DEFAULT_IO_WEIGHT,
    CpuMode,
    FilePolicy,
    Files,
    Isolation,
    KeepScratch,
    LaunchSpec,
    Limits,
    Network,
    Target,
    TargetKind,
    Undeclared,
)


def as_json(spec: LaunchSpec) -> dict[str, object]:
    """What ``spec.json`` does not say elsewhere."""
    return {
        "network": str(spec.network),
        "exposed": spec.exposed,
        "files": asdict(spec.files),
        "root": spec.root,
        "shown": spec.shown,
        "gpus": spec.gpus,
    }


def from_json(record: Mapping[str, Any], name: str, scratch_base: str, environment: Mapping[str, str]) -> LaunchSpec:
    """A specification for a sandbox like that of an attempt.

    Args:
        record: its ``spec.json``.
        name: of the new one.
        scratch_base: for the new one.
        environment: beside the attempt's own.

    Raises:
        UsageError: if the record is of a version of Forge that did not write it down.

    """
    sandbox = record.get("sandbox")
    if sandbox is None:
        raise UsageError(f"The record of {record['name']} does not say what its sandbox was like: it is too old.")
    limits, isolation = record["limits"], record["isolation"]
    return LaunchSpec(
        name=name,
        rule=record["rule"],
        wildcards=record["wildcards"],
        attempt=record["attempt"],
        command=record["command"],
        by_hand="",
        how="shell",
        limits=Limits(
            memory_bytes=limits["memory_bytes"],
            cpus=limits["cpus"],
            pids=limits["pids"],
            wall_seconds=None,
            disk_bytes=limits["disk_bytes"],
            gpus=tuple(limits.get("gpus", ())),
            nice=limits.get("nice", 0),
            io_weight=limits.get("io_weight", DEFAULT_IO_WEIGHT),
        ),
        cpu_mode=CpuMode(record["cpu_mode"]),
        network=Network(sandbox["network"]),
        grace_seconds=0.0,
        keep_scratch=KeepScratch.NEVER,
        workdir=record["workdir"],
        job_dir="",
        scratch_base=scratch_base,
        exposed=tuple(sandbox["exposed"]),
        carried=(),
        environment={**record["environment"], **environment},
        inputs=tuple(record["inputs"]),
        outputs=tuple(record["outputs"]),
        isolation=Isolation(isolation["limits"], isolation["files"], (), Network(sandbox["network"])),
        files=_files(sandbox["files"]),
        runtime=record["runtime"],
        root=sandbox["root"],
        shown=tuple(sandbox["shown"]),
        gpus=tuple(sandbox["gpus"]),
        interactive=True,
    )


def _files(data: Mapping[str, Any]) -> Files:
    known: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    targets = tuple(replace(Target(**target), kind=TargetKind(target["kind"])) for target in data["targets"])
    found = Files(**{**known, "targets": targets})
    return replace(found, policy=FilePolicy(found.policy), undeclared=Undeclared(found.undeclared), audit=False)
