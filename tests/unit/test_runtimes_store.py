"""The store of environments: one builder at a time, nothing half-built is believed, nothing in use is built again."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from snakemake_executor_plugin_forge.software import conda, container, venv
from snakemake_executor_plugin_forge.software.activation import capture, prepend
from snakemake_executor_plugin_forge.software.damage import Damage
from snakemake_executor_plugin_forge.software.programs import broken
from snakemake_executor_plugin_forge.software.store import Definition, Report, Store
from snakemake_executor_plugin_forge.software.surroundings import clock_problem, lack_of_space
from snakemake_executor_plugin_forge.spec.catalog import Runtime, RuntimeKind
from snakemake_executor_plugin_forge.spec.errors import BrokenRuntimeError, UsageError

from .. import ordinary

DEFINITION = Definition(RuntimeKind.VENV, "r.txt", {"a": "b"})


def _make(prefix: str, report: Report) -> tuple[dict[str, str], dict[str, str]]:
    report("building")
    os.makedirs(prefix)
    time.sleep(0.2)
    with open(f"{os.path.dirname(os.path.dirname(prefix))}/builds", "a", encoding="ascii") as log:
        log.write("x")
    return {"numpy": "1.0"}, {}


def _build(directory: str) -> None:
    Store(directory).build(DEFINITION, _make, lambda _: None)


def test_four_processes_build_it_once(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("spawn").Process(target=_build, args=(str(tmp_path),)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0] * 4
    assert (tmp_path / "builds").read_text() == "x"
    manifest = Store(str(tmp_path)).manifest(DEFINITION.identity)
    assert manifest is not None
    assert manifest.packages == {"numpy": "1.0"}


def test_a_build_that_was_cut_short_is_not_believed_and_begun_anew(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def fail(prefix: str, report: Report) -> tuple[dict[str, str], dict[str, str]]:
        os.makedirs(prefix)
        Path(prefix, "half").touch()
        raise BrokenRuntimeError("cut short")

    with pytest.raises(BrokenRuntimeError, match="cut short"):
        store.build(DEFINITION, fail, lambda _: None)
    assert store.manifest(DEFINITION.identity) is None
    manifest = store.build(DEFINITION, _make, lambda _: None)
    assert not Path(manifest.prefix, "half").exists()


def _install(directory: str) -> None:
    def make(prefix: str, report: Report) -> tuple[dict[str, str], dict[str, str]]:
        script = "touch started; until [ -e go ]; do sleep 0.05; done; printf o >> builds"
        venv.run_tool(["sh", "-c", script], Runtime("v", RuntimeKind.VENV, f"{directory}/r.txt"), "it failed")
        return {}, {}

    Store(directory).build(DEFINITION, make, lambda _: None)


def test_the_installer_of_a_killed_build_ends_before_the_next_build_begins(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_install, args=(str(tmp_path),))
    process.start()
    while not (tmp_path / "started").exists():
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    waits: list[str] = []

    def report(text: str) -> None:
        waits.append(text)
        (tmp_path / "go").touch()

    Store(str(tmp_path)).build(DEFINITION, _make, report)
    assert waits[0] == "another process builds it; waiting for that"
    assert (tmp_path / "builds").read_text() == "ox"


def test_what_a_run_uses_is_not_built_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.build(DEFINITION, _make, lambda _: None)
    held = store.hold(DEFINITION.identity)
    assert held is not None
    with pytest.raises(BrokenRuntimeError, match="used by a run that is not over"):
        store.build(DEFINITION, _make, lambda _: None, again=True)
    os.close(held)
    store.build(DEFINITION, _make, lambda _: None, again=True)
    assert (tmp_path / "builds").read_text() == "xx"


def test_an_environment_of_a_store_that_was_moved_is_none(tmp_path: Path) -> None:
    """Its files contain the old path: jobs would get the host's programs."""
    Store(str(tmp_path / "a")).build(DEFINITION, _make, lambda _: None)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert Store(str(tmp_path / "link")).manifest(DEFINITION.identity) is not None
    (tmp_path / "a").rename(tmp_path / "b")
    assert Store(str(tmp_path / "b")).manifest(DEFINITION.identity) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_user_holds_what_root_has_built_and_is_told_where_to_build_what_is_missing() -> None:
    with ordinary.reachable() as directory:
        store = Store(str(directory / "store"))
        store.build(DEFINITION, _make, lambda _: None)
        os.seteuid(ordinary.UID)
        try:
            held = store.hold(DEFINITION.identity)
            assert held is not None
            with pytest.raises(UsageError, match=r"cannot be built in .*Name another place with --forge-runtimes-dir"):
                store.build(Definition(RuntimeKind.VENV, "r.txt", {}), _make, lambda _: None)
        finally:
            os.seteuid(0)
        with pytest.raises(BrokenRuntimeError, match="used by a run that is not over"):
            store.build(DEFINITION, _make, lambda _: None, again=True)
        os.close(held)


def test_identity_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    for name, text in (("a", "x==1\n"), ("b", "x==1\n"), ("c", "x==2\n"), ("d", "-r inner.txt\n"), ("e", "-r inner.txt\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.txt").write_text(text)
    (tmp_path / "d" / "inner.txt").write_text("y==1\n")
    (tmp_path / "e" / "inner.txt").write_text("y==2\n")
    of = {n: venv.define(Runtime("v", RuntimeKind.VENV, str(tmp_path / n / "r.txt"))).identity for n in "abcde"}
    assert of["a"] == of["b"]
    assert len(set(of.values())) == 4
    inner = (tmp_path / "d" / "inner.txt").read_text()
    (tmp_path / "d" / "r.txt").write_text("-rinner.txt")
    before = venv.define(Runtime("v", RuntimeKind.VENV, str(tmp_path / "d" / "r.txt")))
    assert inner in before.content.values()
    with pytest.raises(UsageError, match="requirements"):
        venv.define(Runtime("v", RuntimeKind.VENV, str(tmp_path / "nowhere.txt")))


@pytest.mark.parametrize("line", ["./tool", "./tool[extra]; python_version > '3'  # ours", "tool @ file:./tool", "-e ./tool", "--find-links=tool", "./a.whl"])
def test_a_relative_path_means_another_package_elsewhere_and_other_content_another_environment(line: str, tmp_path: Path) -> None:
    def identity(name: str) -> str:
        return venv.define(Runtime("v", RuntimeKind.VENV, str(tmp_path / name / "r.txt"))).identity

    for name in ("a", "b"):
        (tmp_path / name / "tool" / "build").mkdir(parents=True)
        (tmp_path / name / "r.txt").write_text(line)
        (tmp_path / name / "a.whl").touch()
    first = identity("a")
    assert first != identity("b")
    (tmp_path / "a" / "tool" / "build" / "x").touch()
    assert identity("a") == first
    (tmp_path / "a" / "tool" / "x.py").touch()
    (tmp_path / "a" / "a.whl").write_text("x")
    assert (identity("a") == first) is line.startswith("-")


def test_pip_in_a_conda_environment_is_part_of_its_definition_and_runs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without these variables, pip counts a package in ~/.local as installed, which no job sees."""
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    runtime = Runtime("c", RuntimeKind.CONDA, str(tmp_path / "e.yaml"))
    (tmp_path / "e.yaml").write_text("channels: [x]\ndependencies: [python, {pip: [-r r.txt, ./tool]}]\n")
    for text in ("a", "b"):
        (tmp_path / "r.txt").write_text(text)
        definition = conda.define(runtime)
        assert definition is not None
        assert (definition.content["requirements 1"], definition.content["directory"]) == (text, str(tmp_path))
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho $PYTHONNOUSERSITE $PIP_USER ${{PIP_TARGET-none}} $CONDA_PREFIX "$@" > {tmp_path}/said\n')
    python.chmod(0o755)
    conda._install_pip(runtime, {"dependencies": [{"pip": ["-r r.txt", "x"]}]}, str(tmp_path / "env"), lambda _: None)
    said = (tmp_path / "said").read_text().split()
    assert said[:6] == ["1", "0", "none", str(tmp_path / "env"), "-m", "pip"]


def test_an_activation_is_captured_whatever_it_prints_and_sets(tmp_path: Path) -> None:
    noise = "yes | head -c 300000; yes | head -c 300000 >&2"
    script = f"{noise}; export A='two\nlines' B=changed; unset C; export TMPDIR=/nowhere"
    changed, removed = capture(script, {"B": "b", "C": "c", "PATH": os.environ["PATH"]}, "it")
    assert (changed, removed) == ({"A": "two\nlines", "B": "changed"}, ("C",))
    with pytest.raises(BrokenRuntimeError, match=r"it failed with exit code 3: reason-9"):
        capture("echo reason-9 >&2; exit 3", {"PATH": os.environ["PATH"]}, "it")
    assert prepend("/a:/b:/c", "/b") == "/b:/a:/c"


def test_programs_that_cannot_be_started_are_named(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "good").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "bad").write_text("#!/opt/nowhere/python3\n")
    shutil.copy("/bin/ls", tmp_path / "bin" / "ls")
    body = (tmp_path / "bin" / "ls").read_bytes()
    name = b"libselinux.so.1"
    assert name in body
    (tmp_path / "bin" / "cripple").write_bytes(body.replace(name, b"libforgeno.so.1"))
    found = {(Path(p.path).name, p.fault, p.detail) for p in broken(str(tmp_path))}
    assert found == {("bad", Damage.INTERPRETER, "/opt/nowhere/python3"), ("cripple", Damage.LIBRARY, "libforgeno.so.1")}


def test_room_and_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clock_problem(str(tmp_path)) is None
    place = str(tmp_path / "not" / "there")
    for blocks, files, problem in ((1 << 8, 0, "only 1.0 MiB are free"), (1 << 28, 9, "only 5 more files can be made (inodes)"), (1 << 28, 0, None)):
        monkeypatch.setattr(os, "statvfs", lambda _, b=blocks, f=files: SimpleNamespace(f_bavail=b, f_frsize=4096, f_files=f, f_favail=5))
        assert lack_of_space("scratch", place) == (problem and f"scratch {place}: {problem}")
    assert clock_problem("/nowhere-of-forge") is not None


@pytest.mark.skipif(not Path("/var/lib/dpkg/status").exists(), reason="no Debian")
def test_packages_of_a_debian_root() -> None:
    assert container.packages("/")["bash"]
