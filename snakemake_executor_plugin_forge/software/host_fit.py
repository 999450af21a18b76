"""Whether this host can run an environment: loader, C library and processor of its programs, needs of its packages.

A store on a shared file system meets hosts with other C libraries, and an upgrade of the system changes its own.

Sources: elf(5); the platform tags of wheels (PEP 600, PEP 656); ``depends`` in conda's ``conda-meta/*.json``.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..record.jsonfile import read_object
from ..spec.catalog import RuntimeKind
from .damage import Damage, Problem, package_of
from .venv import site_packages

_INTERPRETER_SEGMENT = 3  # PT_INTERP
_HEADER_BYTES = 4096
_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64", 21: "ppc64", 22: "s390x"}
_LEGACY = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}
_TAG = re.compile(r"(?P<any>-any\b)|(?P<many>manylinux|musllinux)_(?P<major>\d+)_(?P<minor>\d+)_"
                  r"|(?P<legacy>manylinux(?:1|2010|2014))_|-(?P<local>linux)_")  # fmt: skip
_GLIBC = re.compile(r"__glibc\s*>=?\s*(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Libc:
    """A C library."""

    family: str  # "glibc", "musl"
    version: tuple[int, ...]  # empty: unknown

    def __str__(self) -> str:
        return " ".join((self.family, *([".".join(map(str, self.version))] if self.version else [])))

    @classmethod
    def parse(cls, text: str) -> Libc | None:
        """The C library from its text; None if that names none."""
        family, _, version = text.partition(" ")
        parts = version.split(".")
        return cls(family, tuple(int(p) for p in parts if p.isdigit())) if family else None

    def can_run(self, other: Libc) -> bool:
        """Whether programs that were made for another C library run with this one."""
        return self.family == other.family and (not self.version or self.version >= other.version)


@dataclass(frozen=True, slots=True)
class Program:
    """The needs of an ELF program: interpreter, machine, C library."""

    machine: int
    loader: str | None  # None: it is linked statically, or not known


def read_program(path: str) -> Program | None:
    """Read the header of a program; None for scripts, and for what is no program of Linux."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
            return _program(head, file.fileno())
    except OSError:
        return None


def _program(head: bytes, fd: int) -> Program | None:
    if len(head) < 64 or head[:4] != b"\x7fELF" or head[5] not in (1, 2):
        return None
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    machine = struct.unpack_from(f"{order}H", head, 18)[0]
    table = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)[0]
    size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
    for number in range(count):
        start = table + number * size
        with suppress(struct.error):
            if struct.unpack_from(f"{order}I", head, start)[0] == _INTERPRETER_SEGMENT:
                place = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, start + (8 if wide else 4))[0]
                name = os.pread(fd, _HEADER_BYTES, place).split(b"\0", 1)[0]  # patchelf(1) moves it far back
                return Program(machine, name.decode("utf-8", "surrogateescape") or None)
    return Program(machine, None)


# -- the host ----------------------------------------------------------------------------------------------------------


@functools.cache
def _own() -> Program:
    return read_program("/proc/self/exe") or Program(0, None)


@functools.cache
def libc_of(loader: str) -> Libc | None:
    """The C library to which a loader of this host belongs; None if it is not known."""
    name = os.path.basename(loader)
    own = _own().loader
    if own is not None and os.path.realpath(loader) == os.path.realpath(own):
        with suppress(ValueError, OSError):
            if (text := os.confstr("CS_GNU_LIBC_VERSION")) is not None:
                return Libc.parse(text)
    family = "musl" if name.startswith("ld-musl") else "glibc" if name.startswith(("ld-linux", "ld.so", "ld64")) else ""
    if not family:
        return None
    with suppress(OSError):
        done = subprocess.run([loader, "--version"], capture_output=True, text=True, check=False, errors="replace")
        if (found := re.search(r"(\d+)\.(\d+)", done.stdout + done.stderr)) is not None:
            return Libc(family, tuple(map(int, found.groups())))
    return Libc(family, ())


def libc() -> Libc | None:
    """The C library of this process, and of the programs of this host."""
    loader = _own().loader
    return libc_of(loader) if loader is not None else None


def describe(prefix: str, kind: RuntimeKind) -> str:
    """The C library that programs of an environment get on this host: if it changes, packages are looked at again."""
    if kind is RuntimeKind.CONTAINER:
        return ""
    program = read_program(f"{prefix}/bin/python")
    found = libc_of(program.loader) if program is not None and program.loader is not None else libc()
    return str(found or "")


# -- programs ----------------------------------------------------------------------------------------------------------


def misfits(prefix: str, kind: RuntimeKind, built: str | None) -> Iterator[Problem]:
    """The problem of the program with which jobs begin: the interpreter of an environment, the shell of an image.

    It reads one file.

    Args:
        built: the C library for which the environment was built, as text; None if that is not known.
    """
    name = "bin/bash" if kind is RuntimeKind.CONTAINER else "bin/python"
    path = f"{prefix}/{name}"
    real = inside(prefix, name) if kind is RuntimeKind.CONTAINER else os.path.realpath(path)
    if not os.path.exists(real):
        if kind is RuntimeKind.VENV:
            yield Problem(path, Damage.INTERPRETER, real)
        return  # an image may have its shell elsewhere, and conda need not have Python
    program = read_program(real)
    if program is None:
        return
    if not _is_ours(program.machine):
        yield Problem(path, Damage.MACHINE, _MACHINES.get(program.machine, f"ELF machine {program.machine}"))
        return
    if program.loader is None:
        return
    loader = inside(prefix, program.loader) if kind is RuntimeKind.CONTAINER else program.loader
    there = os.path.exists(loader)
    then = Libc.parse(built) if built else None
    now = libc_of(program.loader) if kind is not RuntimeKind.CONTAINER else None
    if then is not None and now is not None and now.family != then.family:
        yield Problem(path, Damage.C_LIBRARY, f"{now.family}, and the environment was made for {then}")
    elif not there:
        yield Problem(path, Damage.INTERPRETER, f"{program.loader}, the loader of its C library")


def _is_ours(machine: int) -> bool:
    own = _own().machine
    pairs = {(62, 3), (183, 40)}  # the processors run programs of their predecessors
    return not own or machine == own or (own, machine) in pairs or bool(glob.glob("/proc/sys/fs/binfmt_misc/qemu-*"))


def inside(root: str, path: str, links: int = 40) -> str:
    """The place of an image's path on this host; links lead to places in the image.

    Args:
        links: so many links are followed.
    """
    parts, done = [p for p in path.split("/") if p], root
    while parts:
        part = parts.pop(0)
        if part == "..":
            done = os.path.dirname(done) if done != root else root
            continue
        here = f"{done}/{part}"
        if part != "." and links > 0 and os.path.islink(here):
            links -= 1
            target = os.readlink(here)
            parts = [p for p in target.split("/") if p] + parts
            done = root if target.startswith("/") else done
        elif part != ".":
            done = here
    return done


# -- packages ----------------------------------------------------------------------------------------------------------


def misfit_packages(prefix: str, kind: RuntimeKind, built: str | None) -> Iterator[Problem]:
    """Packages that need a newer or another C library than this host has. It reads one small file of each package."""
    now = Libc.parse(describe(prefix, kind))
    if now is None or kind is RuntimeKind.CONTAINER:
        return
    for site in site_packages(prefix):
        for path in sorted(glob.glob(f"{glob.escape(site)}/*.dist-info/WHEEL")):
            with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                needed = _needed(file.read(), now, Libc.parse(built) if built else None)
                if needed is not None:
                    name = package_of(os.path.dirname(path))
                    yield Problem(path, Damage.C_LIBRARY, f"{needed}; this host has {now}", name)
    if kind is RuntimeKind.CONDA:
        yield from _misfits_of_conda(prefix, now)


def _needed(wheel: str, now: Libc, built: Libc | None) -> Libc | None:
    """Return the needs of a package that this host lacks; it works if one of its tags fits."""
    needed: list[Libc] = []
    for line in wheel.splitlines():
        if line.startswith("Tag:"):
            for found in _TAG.finditer(line):
                if found["any"]:
                    return None
                if found["local"]:  # compiled where the environment was built
                    needed += [built] if built is not None else [now]
                elif found["legacy"]:
                    needed.append(Libc("glibc", _LEGACY[found["legacy"]]))
                else:
                    family = "musl" if found["many"] == "musllinux" else "glibc"
                    needed.append(Libc(family, (int(found["major"]), int(found["minor"]))))
    if not needed or any(now.can_run(libc) for libc in needed):
        return None
    return min(needed, key=lambda libc: libc.version)


def _misfits_of_conda(prefix: str, now: Libc) -> Iterator[Problem]:
    for path in sorted(glob.glob(f"{glob.escape(prefix)}/conda-meta/*.json")):
        with suppress(OSError, ValueError):
            record = read_object(path)
            for dependency in record.get("depends") or []:
                if (found := _GLIBC.match(str(dependency))) is not None:
                    needed = Libc("glibc", tuple(map(int, found.groups())))
                    if not now.can_run(needed):
                        name = f"{record.get('name')} {record.get('version')}"
                        yield Problem(path, Damage.C_LIBRARY, f"{needed}; this host has {now}", name)
