"""Checks of every file of an environment: conda's and Python's own lists, and the memory of the last check."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.software import conda, health, venv
from snakemake_executor_plugin_forge.software.damage import Damage, Health
from snakemake_executor_plugin_forge.software.health import verify
from snakemake_executor_plugin_forge.software.store import Manifest, Store
from snakemake_executor_plugin_forge.spec.catalog import Runtime, RuntimeKind

from ..conda.channel import environment_file, make_channel

LONG_AGO = time.time() - 3600


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Runtime, Manifest]:
    """A real conda environment of 100 small files and some programs."""
    directory = tmp_path_factory.mktemp("health")
    channel = make_channel(directory / "channel")
    (directory / "env.yaml").write_text(environment_file(channel, "many", "bcftools", "hooked"))
    runtime = Runtime("genomics", RuntimeKind.CONDA, str(directory / "env.yaml"))
    store = Store(str(directory / "store"))
    definition = conda.define(runtime)
    assert definition is not None
    manifest = store.build(definition, lambda prefix, report: conda.make(runtime, store, prefix, report), lambda _: None)
    return store, runtime, manifest


@pytest.fixture
def prefix(original: tuple[Store, Runtime, Manifest], tmp_path: Path) -> Path:
    """A copy of the environment, to be damaged."""
    shutil.copytree(original[2].prefix, tmp_path / "env", symlinks=True)
    return tmp_path / "env"


def _look(prefix: Path, *, fully: bool = False) -> Health:
    return verify(str(prefix), RuntimeKind.CONDA, str(prefix.parent / "verified.json"), fully=fully)


@pytest.fixture
def rested(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The copy as if it were older: ``verify`` does not trust time stamps of a moment ago."""
    monkeypatch.setattr(health, "_RECENT_NS", 0)
    return prefix


def test_sound_environment_with_patched_files_and_links_has_no_problem(original: tuple[Store, Runtime, Manifest]) -> None:
    health = verify(original[2].prefix, RuntimeKind.CONDA, None, fully=True)
    assert health.problems == ()
    assert health.files == 107
    assert health.hashed == 107


def _flip(path: Path, *, keep_times: bool) -> None:
    before = path.stat()
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(body)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: list[tuple[str, Callable[[Path], object], Damage]] = [
    ("share/many/042.txt", lambda p: _flip(p, keep_times=False), Damage.CHANGED),
    ("share/many/042.txt", lambda p: _flip(p, keep_times=True), Damage.CHANGED),
    ("bin/bcftools", lambda p: _flip(p, keep_times=True), Damage.CHANGED),
    ("bin/bcftools.real", lambda p: os.truncate(p, 1000), Damage.CHANGED),
    ("share/many/007.txt", Path.unlink, Damage.MISSING),
    ("bin/bcf", _relink, Damage.BROKEN_LINK),
    ("share/hooked.txt", _make_directory, Damage.CHANGED),
]


def test_every_kind_of_damage_is_found_also_when_the_environment_was_sound_before(rested: Path) -> None:
    prefix = rested
    assert _look(prefix).problems == ()
    assert _look(prefix).hashed == 0  # all of it is remembered
    backup = prefix.parent / "backup"
    for name, damage, fault in DAMAGE:
        path = prefix / name
        shutil.copytree(prefix, backup, symlinks=True)
        damage(path)
        assert [(p.path, p.fault) for p in _look(prefix).damage] == [(str(path), fault)], name
        shutil.rmtree(prefix)
        backup.rename(prefix)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 99), position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found_and_its_repair_believed(prefix: Path, number: int, position: int, bit: int) -> None:
    path = prefix / f"share/many/{number:03d}.txt"
    body = bytearray(path.read_bytes())
    good = bytes(body)
    body[position % len(body)] ^= 1 << bit
    path.write_bytes(body)
    assert [p.path for p in _look(prefix).damage] == [str(path)]
    path.write_bytes(good)
    assert _look(prefix).damage == ()


def test_what_was_changed_a_moment_ago_is_not_remembered(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's time stamps are coarse: a second change within a tick gets the same one."""
    monkeypatch.setattr(health, "_RECENT_NS", 3600 * 10**9)  # a busy machine may take longer than the two seconds of a moment
    (prefix / "share/many/001.txt").touch()
    assert _look(prefix).hashed > 0
    assert _look(prefix).hashed > 0


def test_files_added_by_hand_are_named_and_no_damage(prefix: Path) -> None:
    (prefix / "bin" / "mine").write_text("#!/bin/sh\n")
    health = _look(prefix, fully=True)
    assert [(p.path, p.fault) for p in health.problems] == [(str(prefix / "bin/mine"), Damage.ADDED)]
    assert health.damage == ()


def test_unreadable_package_list_is_damage(prefix: Path) -> None:
    record = next(prefix.glob("conda-meta/many-*.json"))
    record.write_text("{")
    assert [p.path for p in _look(prefix).damage] == [str(prefix / "conda-meta")]


def test_a_second_look_is_faster(rested: Path) -> None:
    cold = _look(rested)
    warm = [_look(rested) for _ in range(5)]
    assert {h.hashed for h in warm} == {0}
    assert min(h.seconds for h in warm) < cold.seconds


def test_venv_is_checked_against_its_records(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("")
    runtime = Runtime("py", RuntimeKind.VENV, str(tmp_path / "requirements.txt"))
    store = Store(str(tmp_path / "store"))
    manifest = store.build(venv.define(runtime), lambda p, r: venv.make(runtime, p, r, trust_cache=True), lambda _: None)
    prefix = Path(manifest.prefix)
    assert verify(manifest.prefix, RuntimeKind.VENV, None, fully=True).problems == ()
    module = next(prefix.glob("lib/python3*/site-packages/pip/__main__.py"))
    _flip(module, keep_times=True)
    assert [p.path for p in verify(manifest.prefix, RuntimeKind.VENV, None).damage] == [str(module)]
    (prefix / "bin" / "python").unlink()
    faults = [p.fault for p in verify(manifest.prefix, RuntimeKind.VENV, None).damage]
    assert Damage.INTERPRETER in faults


def test_what_a_script_changed_at_the_set_up_is_no_damage_and_what_changes_later_is(prefix: Path) -> None:
    """Snakemake's post-deploy scripts do this; building such an environment again would not help."""
    (prefix / "share" / "hooked.txt").write_text("new")
    shutil.rmtree(prefix / "share" / "many")
    late = time.time_ns() + 10**9
    assert verify(str(prefix), RuntimeKind.CONDA, None, set_up_ns=late).damage == ()
    assert len(verify(str(prefix), RuntimeKind.CONDA, None, set_up_ns=int(LONG_AGO * 10**9)).damage) == 101


def test_the_environment_that_an_activation_has_reached(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "conda-meta").mkdir(parents=True)
    a, b = (str(tmp_path / name) for name in "ab")
    assert conda.prefix_of("a", {"CONDA_PREFIX": b}, {"CONDA_PREFIX": a}) == a
    assert conda.prefix_of("a", {"CONDA_PREFIX": a}, {}) == a  # it was active before, and nothing changed
    assert conda.prefix_of("nowhere", {"CONDA_PREFIX": a}, {}) is None
    assert conda.prefix_of(b, {}, {}) == b
    assert conda.prefix_of("/nowhere", {}, {"CONDA_PREFIX": a}) is None


def test_a_package_that_pip_has_installed_over_one_of_conda_is_no_damage(prefix: Path) -> None:
    """``pip:`` in an environment file does this; conda's own list stays as it was."""
    site = prefix / "lib" / "python3.11" / "site-packages"
    names = ("My_Thing-1.0.dist-info/METADATA", "My_Thing-1.0.dist-info/INSTALLER", "thing.py")
    paths = [{"_path": f"lib/python3.11/site-packages/{name}", "path_type": "hardlink", "sha256": "0" * 64} for name in names]
    (prefix / "conda-meta" / "my_thing-1.0-0.json").write_text(json.dumps({"paths_data": {"paths": paths}}))
    assert {p.fault for p in _look(prefix).problems} == {Damage.MISSING}
    info = site / "my_thing-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "INSTALLER").write_text("pip\n")
    (site / "thing.py").write_text("x = 2\n")
    sha256 = base64.urlsafe_b64encode(hashlib.sha256(b"x = 2\n").digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"thing.py,sha256={sha256},6\n")
    assert _look(prefix).problems == ()
    assert conda.packages(str(prefix))["my_thing"] == "2.0 pypi_0"
    (site / "thing.py").write_text("x = 3\n")
    assert [p.fault for p in _look(prefix).problems] == [Damage.CHANGED]


def test_repair_never_uses_the_damaged_hard_link(original: tuple[Store, Runtime, Manifest]) -> None:
    """The environment's file is a hard link to that of the package cache, so both are damaged at once."""
    store, runtime, manifest = original
    damaged = Path(manifest.prefix, "share/many/042.txt")
    cached = next(Path(store.packages).glob("pkgs/many-*/share/many/042.txt"))
    assert damaged.stat().st_ino == cached.stat().st_ino
    _flip(damaged, keep_times=True)
    assert verify(manifest.prefix, RuntimeKind.CONDA, None).damage
    definition = conda.define(runtime)
    assert definition is not None
    store.build(definition, lambda p, r: conda.make(runtime, store, p, r), lambda _: None, again=True)
    assert verify(manifest.prefix, RuntimeKind.CONDA, None, fully=True).problems == ()
    # Other environments do not get it either.
    other = Path(store.directory, "other")
    asyncio.run(_install_into(runtime, store, other))
    assert verify(str(other), RuntimeKind.CONDA, None).damage == ()


async def _install_into(runtime: Runtime, store: Store, prefix: Path) -> None:
    await asyncio.to_thread(conda.make, runtime, store, str(prefix), lambda _: None)
