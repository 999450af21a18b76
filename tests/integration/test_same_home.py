"""$HOME and caches: later jobs and runs of the workflow see the files that jobs write there; the real ones stay unchanged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import syscalls

from .. import ordinary
from ..conftest import Result, command, end_at_once, forge, run, wait_until, write_workflow
from ..side_by_side import USERS

pytestmark = pytest.mark.slow  # runs each case with local, too

WORKFLOW = """
    import os
    NAMES = list("abcd")
    rule all:
        input: "read.txt", "python.txt", "cached.txt", "deep/inner.txt"
    rule touched:
        output: touch("touched.done")
        shell: "echo x > /tmp/shared.db; mkdir /tmp/index; mktemp; mktemp -d; touch /tmp/tool.RU6P0B; test ! -e ~/out/made.txt; mkdir -p ~/.cache/tool && echo kept > ~/.cache/tool/index; rm ~/old; ln -s tool ~/.cache/link"
    rule read:
        input: "touched.done"
        output: "read.txt"
        shell: "cat ~/.cache/link/index > {output}; if test -e ~/old; then exit 3; fi; cat ~/rc >> {output}"
    rule python:
        input: "touched.done"
        output: "python.txt"
        run:
            with open(os.path.expanduser("~/.cache/tool/index")) as index, open(output[0], "w") as file:
                file.write(index.read())
    rule append:
        output: touch("{name}.done")
        shell:
            "for i in 1 2 3 4 5; do flock $XDG_CACHE_HOME/lock"
            " sh -c 'n=$(cat $XDG_CACHE_HOME/number || echo 0); echo $((n + 1)) > $XDG_CACHE_HOME/number' 2> /dev/null; done"
    rule cached:
        input: expand("{name}.done", name=NAMES)
        output: "cached.txt"
        shell: "cp $XDG_CACHE_HOME/number {output}"
    rule published:
        input: "touched.done"
        output: os.environ["PLACE"] + "/home/out/made.txt"
        shell: "echo made > {output}"
    rule inner:
        input: os.environ["PLACE"] + "/home/out/made.txt", "touched.done"
        output: "deep/inner.txt"
        shell: "cat {input[0]} > {output}"
    rule linked:
        output: "linked.txt"
        shell: "mkdir -p ~/.cache/models; echo model > ~/.cache/models/a; ln -s ~/.cache/models/a {output}"
    rule again:
        output: "again.txt"
        shell: "cat ~/.cache/tool/index $XDG_CACHE_HOME/number > {output}"
    rule held:
        output: "held.txt"
        shell: "echo {output} > ~/held; echo x > {output}; until grep -q go ~/go; do sleep 0.2; done"
    rule more:
        output: "more.txt"
        shell: "cat ~/held > {output}; echo go > ~/go"
    rule before:
        output: "before.txt"
        shell: "cat ~/usb/name ~/fuse/name > {output} 2> /dev/null || true; until grep -q go go.txt; do sleep 0.2; done"
    rule after:
        input: "before.txt"
        output: "after.txt"
        shell: "cat ~/new/name > {output}; test ! -e ~/usb/name"
    """


class Place:
    """A working directory, a home and a cache directory beside it, and a user."""

    def __init__(self, place: Path, user: str) -> None:
        self.directory = place / "work"
        self.home, self.cache = place / "home", place / "cache"
        for directory in (self.directory, self.home / "out", self.cache):
            directory.mkdir(parents=True)
        (self.home / "old").write_text("old\n")
        (self.home / "rc").write_text("rc\n")
        write_workflow(self.directory, WORKFLOW)
        self.environment = {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.cache), "PLACE": str(place)}
        self.before = ordinary.given_to(user, place)
        if self.before:
            self.before += ["env", *(f"{name}={value}" for name, value in self.environment.items())]

    def run(self, *arguments: str, executor: str = "forge") -> Result:
        return run(self.directory, *arguments, executor=executor, before=self.before, env=self.environment)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self.before, *command("forge", *arguments)], cwd=self.directory, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | self.environment,
                                start_new_session=True)

    def kept(self, name: str) -> list[Path]:
        return list(self.directory.glob(f".snakemake/forge/home/*/upper/{name}"))

    def text(self, name: str) -> str:
        return (self.directory / name).read_text()


@pytest.fixture(scope="module", params=USERS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with ordinary.reachable() as directory:
        yield Place(directory, request.param)


def test_later_jobs_see_what_earlier_ones_left(place: Place) -> None:
    done = place.run("-j4")
    assert done.code == 0, done.output
    assert place.text("read.txt") == "kept\nrc\n"
    (note,) = next(attempt["notes"] for attempt in done.attempts() if attempt["rule"] == "touched")
    assert "left /tmp/index, /tmp/shared.db (2 B), which went with its private /tmp" in note
    assert place.text("python.txt") == "kept\n"
    assert place.text("cached.txt") == "20\n"  # no increment of parallel jobs is lost
    assert place.text("deep/inner.txt") == "made\n"
    assert sorted({*os.listdir(place.home)} - {".local"}) == ["old", "out", "rc"]  # .local/state: Forge's own notes
    assert "number" not in os.listdir(place.cache)


def test_later_runs_see_it_and_two_at_once_share_it(place: Place) -> None:
    held = place.start("-j1", "--nolock", "held.txt")
    wait_until(lambda: bool(place.kept("held")), held)
    other = place.run("-j1", "--nolock", "more.txt", "again.txt")
    assert other.code == 0, other.output
    assert held.wait() == 0
    assert place.text("more.txt") == "held.txt\n"
    assert place.text("again.txt") == "kept\n20\n"


def test_an_output_that_is_a_link_into_it_is_refused_with_the_line_that_allows_it(place: Place) -> None:
    refused = place.run("-j1", "linked.txt")
    (attempt,) = refused.attempts("linked")
    assert attempt["cause"] == "rejected" and "which only this workflow has in its home" in attempt["reason"], refused.output
    (line,) = re.findall(r"add to forge.yaml: (defaults: .*\}\})\)", attempt["reason"])
    (place.directory / "forge.yaml").write_text(f"version: 1\n{line}\n")
    allowed = place.run("-j1", "linked.txt")
    (place.directory / "forge.yaml").unlink()
    assert allowed.code == 0, allowed.output
    assert place.text("linked.txt") == "model\n"
    shutil.rmtree(place.home / ".cache")


def test_a_killed_run_leaves_a_home_for_the_next(place: Place) -> None:
    for name in ("held", "go"):
        for path in place.kept(name):
            path.unlink()
    (place.directory / "held.txt").unlink()
    held = place.start("-j1", "--nolock", "held.txt")
    wait_until(lambda: bool(place.kept("held")), held)
    end_at_once(held)
    (place.directory / "again.txt").unlink()
    done = place.run("-j1", "--nolock", "again.txt")
    assert done.code == 0, done.output
    assert place.text("again.txt") == "kept\n20\n"


def test_gc_lists_and_removes_it(place: Place) -> None:
    def gc(*words: str) -> list[str]:
        done = forge(place.directory, "gc", "--only", "home", "--json", *words, check=True, before=place.before)
        return [row["path"] for row in json.loads(done.stdout)]

    home = str(place.directory / ".snakemake" / "forge" / "home")
    wait_until(lambda: gc("--kept-after", "1s", "--dry-run") == [home])
    assert gc() == []  # it is young
    assert gc("--kept-after", "1s") == [home]
    assert not os.path.exists(home)
    assert (place.home / "old").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts as root")
def test_mounts_that_go_and_come_while_the_run_lasts(place: Place) -> None:
    """Only root's run: another user's has its own mount namespace."""
    if place.before:
        return
    usb, new, fuse = (place.home / name for name in ("usb", "new", "fuse"))
    (place.directory / "go.txt").write_text("")
    with ExitStack() as stack:
        for directory in (usb, new, fuse):
            directory.mkdir()
        _mount("tmpfs", usb)
        stack.callback(_unmount, usb)
        device = os.open("/dev/fuse", os.O_RDWR)
        _mount("fuse", fuse, f"fd={device},rootmode=40000,user_id=0,group_id=0")
        stack.callback(_unmount, fuse)
        (usb / "name").write_text("usb")
        os.close(device)  # now the mount behaves as if its daemon had been killed: ENOTCONN
        running = place.start("-j1", "after.txt")
        # The file appears before cat has read its content.
        wait_until(lambda: "usb" in [path.read_text() for path in place.directory.glob(".snakemake/forge/staging/*/upper/before.txt")], running)
        _unmount(usb)
        usb.rmdir()
        _mount("tmpfs", new)
        stack.callback(_unmount, new)
        (new / "name").write_text("new")
        (place.directory / "go.txt").write_text("go")
        assert running.wait() == 0
    assert place.text("before.txt") == "usb"
    assert place.text("after.txt") == "new"


def _mount(kind: str, place: Path, options: str = "") -> None:
    syscalls.mount("forge-test", str(place), kind, 0, options)


def _unmount(place: Path) -> None:
    with suppress(OSError):
        syscalls.run([syscalls.unmount_step(str(place))])
