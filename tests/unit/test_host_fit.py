"""Environments that this host cannot run: programs, wheels and conda packages for other C libraries and processors."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.software import channels, host_fit, image_files
from snakemake_executor_plugin_forge.software.damage import Damage
from snakemake_executor_plugin_forge.software.health import verify
from snakemake_executor_plugin_forge.software.host_fit import inside, read_program
from snakemake_executor_plugin_forge.spec.catalog import RuntimeKind
from tests import ordinary

HERE = host_fit.libc()
pytestmark = pytest.mark.skipif(HERE is None or HERE.family != "glibc", reason="the tests know glibc")


def test_a_program_says_what_it_needs(tmp_path: Path) -> None:
    program = read_program(sys.executable)
    assert program is not None
    assert program.loader is not None
    assert Path(program.loader).exists()
    said = subprocess.run([program.loader, "--version"], capture_output=True, text=True, check=True).stdout
    assert HERE is not None
    assert ".".join(map(str, HERE.version)) in said
    moved, end = bytearray(Path(sys.executable).read_bytes()), len(Path(sys.executable).read_bytes())
    table, size, count = struct.unpack_from("<Q", moved, 32)[0], *struct.unpack_from("<HH", moved, 54)
    for start in range(table, table + size * count, size):
        if struct.unpack_from("<I", moved, start)[0] == 3:  # PT_INTERP: patchelf puts its text behind all else
            struct.pack_into("<Q", moved, start + 8, end)
    (tmp_path / "python").write_bytes(bytes(moved) + program.loader.encode() + b"\0")
    assert read_program(str(tmp_path / "python")) == program
    assert read_program(__file__) is None
    assert read_program("/nowhere-of-forge") is None


@pytest.mark.parametrize(("tags", "built", "needed"), [
    ("py3-none-any", None, None),
    ("cp311-cp311-manylinux_2_17_x86_64\nTag: cp311-cp311-manylinux2014_x86_64", None, None),
    ("cp311-cp311-manylinux_2_99_x86_64", None, "glibc 2.99"),
    ("cp311-cp311-manylinux_2_99_x86_64\nTag: cp311-cp311-manylinux1_x86_64", None, None),
    ("cp311-cp311-musllinux_1_2_x86_64", None, "musl 1.2"),
    ("cp311-cp311-linux_x86_64", None, None),
    ("cp311-cp311-linux_x86_64", "glibc 2.98", "glibc 2.98"),
    ("cp311-cp311-linux_x86_64", "glibc 2.5", None),
])
def test_wheels_that_this_host_cannot_load_are_named(tmp_path: Path, tags: str, built: str | None, needed: str | None) -> None:
    info = tmp_path / "lib/python3.11/site-packages/some_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nTag: {tags}\n")
    found = list(host_fit.misfit_packages(str(tmp_path), RuntimeKind.VENV, built))
    assert [(p.path, p.fault, p.package) for p in found] == (
        [(f"{info}/WHEEL", Damage.C_LIBRARY, "some_package 1.0")] if needed else [])
    assert all(p.detail == f"{needed}; this host has {HERE}" for p in found)


def test_packages_of_conda_that_need_a_newer_libc_are_named(tmp_path: Path) -> None:
    (tmp_path / "conda-meta").mkdir()
    for name, needed in (("old", "__glibc >=2.5,<3.0.a0"), ("new", "__glibc >=2.99")):
        record = {"name": name, "version": "1.0", "depends": ["libzlib", needed]}
        (tmp_path / f"conda-meta/{name}-1.0-0.json").write_text(json.dumps(record))
    health = verify(str(tmp_path), RuntimeKind.CONDA, None)
    assert [(p.package, p.detail) for p in health.damage] == [("new 1.0", f"glibc 2.99; this host has {HERE}")]


def test_the_shell_of_an_image_needs_its_loader_and_our_processor(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("/usr/bin")  # absolute: it leads to a place in the image
    bash = tmp_path / "usr/bin/bash"
    shutil.copy("/bin/bash", bash)
    (problem,) = verify(str(tmp_path), RuntimeKind.CONTAINER, None).damage
    assert (problem.path, problem.fault) == (f"{tmp_path}/bin/bash", Damage.INTERPRETER)
    program = read_program("/bin/bash")
    assert program is not None
    assert program.loader is not None
    loader = tmp_path / program.loader.lstrip("/")
    loader.parent.mkdir(parents=True)
    loader.touch()
    assert verify(str(tmp_path), RuntimeKind.CONTAINER, None).damage == ()
    body = bytearray(bash.read_bytes())
    struct.pack_into("<H", body, 18, 22)  # s390x
    bash.write_bytes(body)
    if not list(Path("/proc/sys/fs/binfmt_misc").glob("qemu-*")):
        (problem,) = verify(str(tmp_path), RuntimeKind.CONTAINER, None).damage
        assert (problem.fault, problem.detail) == (Damage.MACHINE, "s390x")


def test_links_of_an_image_lead_to_places_in_it(tmp_path: Path) -> None:
    root = str(tmp_path)
    (tmp_path / "a").symlink_to("/b/../c")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/up").symlink_to("../../../d")
    (tmp_path / "loop").symlink_to("loop")
    assert inside(root, "/a/x") == f"{root}/c/x"
    assert inside(root, "a/up/y") == f"{root}/d/y"
    assert inside(root, "../../etc") == f"{root}/etc"
    assert inside(root, "loop").startswith(root)


def test_every_change_of_an_image_is_found_by_its_list(tmp_path: Path) -> None:
    root = tmp_path / "env"
    (root / "etc").mkdir(parents=True)
    (root / "etc/a").write_text("a")
    (root / "etc/b").write_text("b")
    (root / "etc/l").symlink_to("a")
    image_files.write_list(str(root))
    memory = str(tmp_path / "verified.json")
    assert verify(str(root), RuntimeKind.CONTAINER, memory).problems == ()
    (root / "etc/a").write_text("x")
    (root / "etc/b").unlink()
    (root / "etc/l").unlink()
    (root / "etc/l").symlink_to("b")
    found = {(Path(p.path).name, p.fault) for p in verify(str(root), RuntimeKind.CONTAINER, memory).damage}
    assert found == {("a", Damage.CHANGED), ("b", Damage.MISSING), ("l", Damage.CHANGED)}
    (tmp_path / image_files.LIST).write_text("[]")
    assert [p.fault for p in verify(str(root), RuntimeKind.CONTAINER, memory).damage] == [Damage.UNREADABLE]


def test_what_is_patched_in_a_root_deserves_a_message_and_what_decays_is_damage(tmp_path: Path) -> None:
    root = tmp_path / "root"
    lists = root / "var/lib/dpkg/info"
    lists.mkdir(parents=True)
    for name in ("patched", "decayed", "sound"):
        (root / name).write_text("as the package has it")
        os.utime(root / name, (1e9, 1e9))
    (lists / "tool.md5sums").write_text("".join(
        f"{hashlib.md5(b'as the package has it').hexdigest()}  {name}\n" for name in ("patched", "decayed", "sound")))
    os.utime(lists / "tool.md5sums", (1.1e9, 1.1e9))
    (root / "patched").write_text("by its author")
    (root / "decayed").write_text("as the package hAs it")
    os.utime(root / "decayed", (1e9, 1e9))
    found = verify(str(root), RuntimeKind.CONTAINER, None)
    assert {(Path(p.path).name, p.fault) for p in found.problems} == {("patched", Damage.EDITED), ("decayed", Damage.CHANGED)}
    assert [Path(p.path).name for p in found.damage] == ["decayed"]


def test_what_only_its_owner_may_read_is_not_checked(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "closed").mkdir(parents=True)
    for name in ("shadow", "closed/bashrc"):
        (root / name).write_text("x")
    image_files.write_list(str(root))
    (root / "shadow").chmod(0)
    (root / "closed").chmod(0)
    tmp_path.chmod(0o755)
    ask = ("import sys\nfrom snakemake_executor_plugin_forge.software.health import verify, RuntimeKind\n"
           "print(verify(sys.argv[1], RuntimeKind.CONTAINER, None).problems)")
    try:
        before = []
        if os.geteuid() == 0:
            ordinary.hand_over(tmp_path)
            (root / "shadow").chmod(0)
            before = ordinary.prefix()
        done = subprocess.run([*before, sys.executable, "-c", ask, str(root)], capture_output=True, text=True, check=False,
                              cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
        assert (done.returncode, done.stdout) == (0, "()\n"), done.stderr
    finally:
        (root / "closed").chmod(0o755)


def test_checksums_of_an_explicit_list() -> None:
    text = "# https://comment/x\n@EXPLICIT\nhttps://c/a.conda#abc\nhttps://c/b.conda\n"
    assert channels.explicit(text) == {"https://c/a.conda": "abc", "https://c/b.conda": ""}
