"""Packages of conda channels against checksums: those of a lock file before a build, and those installed after one.

A file that a channel serves may be another one tomorrow, by the same name. py-rattler compares what it downloads with
the checksums of the records that it gets, but neither archives on this host nor what a list with ``@EXPLICIT`` says.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..record.checksum import file_digest
from ..record.jsonfile import read_object
from ..spec.errors import BrokenRuntimeError
from .damage import Damage, Problem

if TYPE_CHECKING:
    from rattler import RepoDataRecord

_CHECKSUM = re.compile(r"^(?:sha256:)?(?P<sha256>[0-9a-f]{64})$|^(?:md5:)?(?P<md5>[0-9a-f]{32})$", re.IGNORECASE)


def explicit(text: str) -> dict[str, str]:
    """The addresses in a list with ``@EXPLICIT``, and the checksums after their ``#``; empty where there is none."""
    lines = (line.strip() for line in text.splitlines() if "://" in line and not line.lstrip().startswith("#"))
    return {address: checksum for address, _, checksum in (line.partition("#") for line in lines)}


def add_checksums(records: Iterable[RepoDataRecord], checksums: dict[str, str]) -> None:
    """Add the checksums of a list to its packages, so that the installer compares them."""
    for record in records:
        found = _CHECKSUM.match(checksums.get(record.url, ""))
        for algorithm, value in found.groupdict().items() if found is not None else ():
            if value is not None:
                setattr(record, algorithm, bytes.fromhex(value))


def check_archives(source: str, records: Iterable[RepoDataRecord]) -> None:
    """Compare archives on this host with the checksums of their records.

    Args:
        source: the file that names them, for the message.

    Raises:
        BrokenRuntimeError: names each package that differs.
        OSError: if an archive cannot be read.
    """
    other = []
    for record in records:
        address = urlsplit(record.url)
        algorithm = "sha256" if record.sha256 else "md5"
        wanted: bytes | None = getattr(record, algorithm)
        if address.scheme != "file" or not wanted:
            continue
        found = file_digest(unquote(address.path), algorithm)
        if found != wanted.hex():
            name = f"{record.name.normalized} {record.version}"
            other.append(f"{address.path} (package {name}) has the {algorithm} {found} instead of {wanted.hex()}")
    if other:
        raise BrokenRuntimeError(f"{'; '.join(other)}. {advice(source)}")


def advice(source: str) -> str:
    """Return the advice about a channel that serves another package than the wanted one."""
    return (
        "The channel has another package by this name than before. Get the old one back; or, if you trust the new one, "
        f"have the channel indexed again, and write its checksum into {source} (pixi update PACKAGE; conda-lock; "
        "conda list --explicit --md5)."
    )


async def replaced(gateway: Any, platforms: list[Any], prefix: str) -> list[Problem]:
    """The packages of an environment for which their channels now have another checksum.

    Raises:
        Exception: what py-rattler raises if a channel cannot be reached.
    """
    installed: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(glob.glob(f"{glob.escape(prefix)}/conda-meta/*.json")):
        record = read_object(path)
        if record.get("channel") and record.get("sha256"):
            installed.setdefault(record["channel"], []).append(record)
    problems = []
    for channel, records in installed.items():
        names = sorted({record["name"] for record in records})
        found = await gateway.query(sources=[channel], platforms=platforms, specs=names, recursive=False)
        now = {r.url: r.sha256.hex() for source in found for r in source if r.sha256}
        for record in records:
            if now.get(record["url"], record["sha256"]) != record["sha256"]:
                package = f"{record['name']} {record['version']}"
                detail = f"its sha256 there is {now[record['url']]}, and {record['sha256']} is installed"
                problems.append(Problem(record["url"], Damage.REPLACED, detail, package))
    return problems
