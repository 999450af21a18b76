"""A conda channel around real programs of this machine, made by the tests: no real channel can be reached here.

The packages are what ``conda build`` would have made: a .tar.bz2 with ``info/index.json`` and ``info/paths.json``. The
programs are copied from Debian's packages and still use the libraries of the system.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from rattler.index import index_fs

PLACEHOLDER = "/opt/forge_placeholder_" + "x" * 60
"""Placeholder for the prefix in files of a package; the installer replaces it."""

HOOK = """\
export FORGE_TEST_HOOK="active in $CONDA_PREFIX"
export FORGE_TEST_COUNT=$(( ${FORGE_TEST_COUNT:-0} + 1 ))
echo "once more" >> "${FORGE_TEST_HOOK_LOG:-/dev/null}"
echo "hooks talk a lot" >&2  # on stdout it would break Snakemake itself
unset R_LIBS
"""


@dataclass
class Package:
    """One package: files by their path in the prefix; text with PLACEHOLDER in it is patched."""

    name: str
    version: str
    files: dict[str, bytes]
    links: dict[str, str] = field(default_factory=dict)
    depends: list[str] = field(default_factory=list)
    programs: tuple[str, ...] = ()

    def write(self, subdir: Path) -> Path:
        """Make the archive."""
        paths = []
        archive = subdir / f"{self.name}-{self.version}-0.tar.bz2"
        with tarfile.open(archive, "w:bz2") as tar:
            for path, body in self.files.items():
                _add(tar, path, body, 0o755 if path.startswith("bin/") else 0o644)
                entry = {"_path": path, "path_type": "hardlink", "sha256": _sha256(body), "size_in_bytes": len(body)}
                if PLACEHOLDER.encode() in body:
                    entry |= {"prefix_placeholder": PLACEHOLDER, "file_mode": "text"}
                paths.append(entry)
            for path, target in self.links.items():
                info = tarfile.TarInfo(path)
                info.type, info.linkname = tarfile.SYMTYPE, target
                tar.addfile(info)
                body = self.files[str(Path(path).parent / target)]
                paths.append({"_path": path, "path_type": "softlink", "sha256": _sha256(body), "size_in_bytes": len(body)})
            index = {"name": self.name, "version": self.version, "build": "0", "build_number": 0, "subdir": subdir.name,
                     "arch": "x86_64", "platform": "linux", "depends": self.depends, "timestamp": 1700000000000}
            _add(tar, "info/index.json", json.dumps(index).encode(), 0o644)
            _add(tar, "info/paths.json", json.dumps({"paths": paths, "paths_version": 1}).encode(), 0o644)
            _add(tar, "info/files", "\n".join(str(e["_path"]) for e in paths).encode(), 0o644)
        return archive


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _add(tar: tarfile.TarFile, path: str, body: bytes, mode: int) -> None:
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime = len(body), mode, 1_700_000_000
    tar.addfile(info, io.BytesIO(body))


def _program(name: str) -> bytes:
    found = shutil.which(name, path="/usr/bin:/usr/local/bin:/bin")
    if found is None:
        raise FileNotFoundError(f"{name} is needed: apt-get install samtools bcftools")
    return Path(found).resolve().read_bytes()


def packages() -> list[Package]:
    """samtools and bcftools, a hook, a Python, and many small files."""
    script = f'#!/bin/sh\n# wrapper at {PLACEHOLDER}\nexec {PLACEHOLDER}/bin/bcftools.real "$@"\n'.encode()
    return [
        Package("samtools", "1.16", {"bin/samtools": _program("samtools"), "share/samtools/note.txt": b"samtools of Debian\n"}),
        Package("bcftools", "1.16", {"bin/bcftools.real": _program("bcftools"), "bin/bcftools": script},
                links={"bin/bcf": "bcftools"}, depends=["samtools"]),
        Package("hooked", "2.0", {"etc/conda/activate.d/hooked.sh": HOOK.encode(), "share/hooked.txt": b"x\n"}),
        Package("hooked", "1.0", {"share/hooked.txt": b"older\n"}),
        Package("python", "3.11.2", {"bin/python3.11": _program("python3.11")},
                links={"bin/python": "python3.11", "bin/python3": "python3.11"}),
        Package("many", "1.0", {f"share/many/{n:03d}.txt": f"{n}\n".encode() * 100 for n in range(100)}),
    ]


def make_channel(directory: Path) -> str:
    """Write and index the channel; return its URL."""
    subdir = directory / "linux-64"
    subdir.mkdir(parents=True)
    (directory / "noarch").mkdir()
    for package in packages():
        package.write(subdir)
    asyncio.run(index_fs(directory))
    return f"file://{directory}"


def environment_file(channel: str, *specs: str) -> str:
    """The text of an environment file."""
    return json.dumps({"channels": [channel], "dependencies": list(specs)})  # JSON is YAML
