"""Files that a job leaves in its layers, without a job or mounts: directories as an overlay leaves them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import subprocess
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.sandbox.filesystem.overlay import Layer
from snakemake_executor_plugin_forge.spec.job import FilePolicy, Files, Target, TargetKind
from snakemake_executor_plugin_forge.spec.verdict import Harm, HarmKind
from snakemake_executor_plugin_forge.staging import owners
from snakemake_executor_plugin_forge.staging.attempt_files import file_time_ns
from snakemake_executor_plugin_forge.staging.collect import Collected, collect, publish_logs, undeclared_reads
from snakemake_executor_plugin_forge.staging.git_index import is_refreshed_index
from snakemake_executor_plugin_forge.staging.journal import Move
from snakemake_executor_plugin_forge.staging.merge import ContestedError, merging
from snakemake_executor_plugin_forge.staging.owners import Owners, entry_of
from snakemake_executor_plugin_forge.staging.publish import publish, publish_one
from snakemake_executor_plugin_forge.staging.scene import LayerPlace, Scene
from snakemake_executor_plugin_forge.staging.undeclared import decide


class Place:
    """A working directory with a layer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layer = Layer(str(root), str(root / ".snakemake/forge/staging/x"), str(root))
        self.layer.make()
        self.targets: list[Target] = []

    def old(self, name: str, text: str = "old") -> None:
        """A file that was there before."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def new(self, name: str, text: str = "new") -> None:
        """A file that the job has written."""
        path = Path(self.layer.upper, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def delete(self, name: str) -> None:
        """A file that the job has deleted."""
        os.mknod(f"{self.layer.upper}/{name}", stat.S_IFCHR, os.makedev(0, 0))

    def link(self, name: str, target: str) -> None:
        """A link that the job has made."""
        os.symlink(target, f"{self.layer.upper}/{name}")

    def opaque(self, name: str) -> None:
        """A directory of the job that hides what was there."""
        os.setxattr(f"{self.layer.upper}/{name}", "user.overlay.opaque", b"y")

    def target(self, name: str, kind: TargetKind = TargetKind.OUTPUT, *, optional: bool = False) -> None:
        """A target that the rule declares."""
        self.targets.append(Target(f"{self.root}/{name}", name, kind, optional=optional))

    def look(self) -> Collected:
        """Collect the declared targets."""
        return collect(Files(FilePolicy.GUARD, layers=(str(self.root),), targets=tuple(self.targets)), [self.layer])

    def scene(self, begin_ns: int | None = None, *, allow: bool = False, appended: Mapping[str, int] | None = None) -> Scene:
        """The undeclared changes of a job that begins now."""
        time.sleep(0.02)
        layers = (LayerPlace(str(self.root), self.layer.upper, True),)
        targets = tuple(target.path for target in self.targets)
        appended = {f"{self.root}/{name}": size for name, size in (appended or {}).items()}
        state = f"{self.root}/.snakemake/forge"
        return Scene("r", str(self.root), state, time.time_ns() if begin_ns is None else begin_ns, layers, targets, (),
                     ("out.txt",), allow, appended)

    def keep(self, scene: Scene) -> None:
        """Publish the changes of a scene."""
        publish([], self.layer.directory, merging(scene))
        self.layer.empty()

    def names(self, paths: Iterable[str]) -> list[str]:
        """Make paths relative to the working directory."""
        return [os.path.relpath(path, self.root) for path in paths]

    def text(self, name: str) -> str | None:
        """The content of a file; None if it does not exist."""
        path = self.root / name
        return path.read_text() if path.exists() else None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path.resolve())


def test_declared_and_undeclared_are_told_apart(place: Place) -> None:
    place.old("there.txt")
    time.sleep(0.02)
    place.target("out/a.txt")
    place.target("out/missing.txt")
    place.target("touched.flag", optional=True)
    place.target("log.txt", TargetKind.LOG)
    (place.root / "out").mkdir()
    for name in ("out/a.txt", "out/beside.txt", "there.txt", "dir/x", "log.txt", ".snakemake/scripts/tmp.py"):
        place.new(name)
    found = place.look()
    assert [move.place for move in found.outputs] == [f"{place.root}/out/a.txt"]
    assert [move.place for move in found.logs] == [f"{place.root}/log.txt"]
    assert found.missing == ["out/missing.txt"]
    assert found.rejected == []
    decided = decide(place.scene())
    assert place.names(decided.written()) == ["dir", "out/beside.txt"]
    assert decided.harms == [Harm(f"{place.root}/there.txt", HarmKind.CHANGED)]


def test_the_local_copy_of_a_storage_is_a_target_and_nothing_beside_it(place: Place) -> None:
    place.target(".snakemake/storage/fs/x.txt")
    for name in (".snakemake/storage/fs/x.txt", ".snakemake/storage/fs/y.tmp", ".snakemake/scripts/z.py"):
        place.new(name)
    assert len(place.look().outputs) == 1
    assert not decide(place.scene())


def test_what_a_job_left_undeclared_is_the_workflows_own_to_change(place: Place) -> None:
    place.new("idx.bai", "first")
    place.keep(place.scene())
    place.new("idx.bai", "second")
    place.keep(place.scene())
    assert place.text("idx.bai") == "second"
    place.delete("idx.bai")
    place.keep(place.scene())
    assert place.text("idx.bai") is None


def test_links_are_in_the_ledger(place: Place) -> None:
    place.link("latest", "v1")
    place.keep(place.scene())
    place.link("latest", "v2")
    place.keep(place.scene())
    assert os.readlink(place.root / "latest") == "v2"
    (place.root / "latest").unlink()
    time.sleep(0.02)
    (place.root / "latest").symlink_to("somewhere")  # by a user, and perhaps with the same inode
    place.link("latest", "v3")
    assert [harm.kind for harm in decide(place.scene()).harms] == [HarmKind.CHANGED]


def test_a_file_of_the_time_of_a_recorded_job_is_its_own(place: Place) -> None:
    """With another executor, a file from before the job's begin or after its end is the user's."""
    records = place.root / ".snakemake/metadata"
    records.mkdir(parents=True)
    begin = time.time() - 100
    record = records / urlsafe_b64encode(b"out.txt").decode()
    record.write_text(json.dumps({"starttime": begin, "rule": "r"}))
    os.utime(record, (begin + 10, begin + 10))
    for name, seconds in {"before": -1, "inside": 5, "after": 11}.items():
        place.old(name)
        os.utime(place.root / name, (begin + seconds, begin + seconds))
        place.new(name)
    for name in ("out.txt/file", "out.txt/users"):  # in an output directory, too, only files that its job has made
        place.old(name)
        place.new(name)
    os.utime(place.root / "out.txt/file", (begin + 5, begin + 5))
    decided = decide(place.scene())
    assert place.names(decided.written()) == ["inside", "out.txt/file"]
    assert place.names(harm.path for harm in decided.harms) == ["after", "before", "out.txt/users"]
    assert decide(place.scene(allow=True)).harms == []


def test_nothing_is_published_if_one_file_is_nobodys(place: Place) -> None:
    place.old("raw.txt")
    place.new("a.txt")
    place.delete("raw.txt")
    with pytest.raises(ContestedError, match=r"raw\.txt"):
        place.keep(place.scene())
    assert (place.text("a.txt"), place.text("raw.txt")) == (None, "old")
    place.keep(place.scene(allow=True))
    assert (place.text("a.txt"), place.text("raw.txt")) == ("new", None)


def test_the_same_content_replaces_nothing(place: Place) -> None:
    place.old("ref.fai", "index")
    before = (place.root / "ref.fai").stat()
    place.new("ref.fai", "index")
    assert not decide(place.scene())
    place.keep(place.scene())
    now = (place.root / "ref.fai").stat()
    assert (now.st_ino, now.st_mtime_ns, now.st_ctime_ns) == (before.st_ino, before.st_mtime_ns, before.st_ctime_ns)


def test_of_two_jobs_that_write_the_same_the_last_one_wins(place: Place) -> None:
    begin = place.scene().begin_ns
    place.new("Rplots.pdf", "of one job")
    place.keep(place.scene())
    place.new("Rplots.pdf", "of another job")
    place.keep(place.scene(begin))
    assert place.text("Rplots.pdf") == "of another job"
    place.old("user.txt", "of somebody, meanwhile")
    place.new("user.txt")
    assert decide(place.scene(begin)).harms == [Harm(f"{place.root}/user.txt", HarmKind.CONTESTED)]


def test_directories_are_merged(place: Place) -> None:
    """Both jobs have made the directory, so both believe that nothing else is in it."""
    begin = place.scene().begin_ns
    for name in "ab":
        place.new(f"side/{name}.idx", name)
        place.opaque("side")
        place.keep(place.scene(begin))
    assert sorted(os.listdir(place.root / "side")) == ["a.idx", "b.idx"]
    place.new("side/c.idx")
    place.opaque("side")
    place.keep(place.scene())
    assert os.listdir(place.root / "side") == ["c.idx"]
    place.new("side", "a file")
    assert decide(place.scene(begin)).harms == [Harm(f"{place.root}/side", HarmKind.UNMERGED)]
    place.keep(place.scene())
    assert place.text("side") == "a file"


def test_a_fifo_is_left_out_alone(place: Place) -> None:
    place.new("d/x")
    os.mkfifo(f"{place.layer.upper}/d/pipe")
    scene = place.scene()
    assert decide(scene).left_out == [f"{place.root}/d/pipe (a FIFO)"]
    place.keep(scene)
    assert os.listdir(place.root / "d") == ["x"]


def test_names_that_forge_uses_are_no_orders_to_it(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A field of the move marks a deletion, and the file goes where the job cannot write: no name in the layer counts."""
    outside = tmp_path_factory.mktemp("outside")
    place.old("there")
    place.new("made.txt")
    place.new("sub/made.txt")
    place.keep(place.scene())
    place.delete("made.txt")
    place.link(".forge-trash-0", str(outside))
    place.new("sub/.forge-trash-suid")
    os.chmod(f"{place.layer.upper}/sub/.forge-trash-suid", 0o4755)
    for name in (".forge-copy-1-1", "sub/.forge-copy-1-1", "whole/.forge-copy-1-1", "whole/deep/.forge-staging/x/journal.json", "whole/file"):
        place.new(name)
    place.link("whole/deep/.snakemake", str(outside))
    scene = place.scene()
    decided = decide(scene)
    assert decided.harms == [Harm(f"{place.root}/.forge-trash-0", HarmKind.LEADS_OUT)]
    left_out = place.names(path.partition(" (")[0] for path in decided.left_out)
    assert sorted(left_out) == [".forge-copy-1-1", "sub/.forge-copy-1-1", "whole/.forge-copy-1-1", "whole/deep/.forge-staging",
                                "whole/deep/.snakemake"]
    os.unlink(f"{place.layer.upper}/.forge-trash-0")
    place.new(".forge-trash-0", "a file")
    place.keep(place.scene())
    assert place.text("made.txt") is None and place.text(".forge-trash-0") == "a file"
    assert stat.S_IMODE((place.root / "sub/.forge-trash-suid").stat().st_mode) == 0o755
    assert sorted(os.listdir(place.root / "whole")) == ["deep", "file"] and os.listdir(place.root / "whole/deep") == []
    assert not list(place.root.glob("**/.forge-copy*")) and os.listdir(outside) == []
    assert sorted(os.listdir(place.layer.directory)) == ["upper", "work"]  # nothing waits for the next job of this layer


def test_a_copy_beside_its_place_is_known_by_its_move(place: Place) -> None:
    """Its name does not count: a file of a job may have it."""
    place.new("x/.forge-copy-1-1")
    place.new("y")
    source = f"{place.layer.upper}/x/.forge-copy-1-1"
    publish([Move.of(source, f"{place.root}/.forge-copy-1-1"), Move.of(f"{place.layer.upper}/y", f"{place.root}/y")], place.layer.directory)
    assert place.text(".forge-copy-1-1") == place.text("y") == "new"


def test_a_change_that_would_steer_programs_is_no_better_than_a_new_file(place: Place) -> None:
    """It may replace a file, append to it, or take the place of a directory; git's own changes are kept."""
    config = "[core]\n\tbare = false\n"
    place.new("tool/.git/HEAD", "ref: refs/heads/main\n")
    place.new("tool/.git/config", config)
    place.new("odd/.bashrc/x")
    place.keep(place.scene())
    evil = f"{config}\tfsmonitor = touch /tmp/owned\n"
    for name, text in (("tool/.git/config", evil), ("odd/.bashrc", "touch /tmp/owned")):
        place.new(name, text)
        assert decide(place.scene()).harms == [Harm(f"{place.root}/{name}", HarmKind.STEERS)]
        assert not decide(place.scene(allow=True)).harms
        os.unlink(f"{place.layer.upper}/{name}")
    place.new("tool/.git/config", evil)
    decided = decide(place.scene(1, appended={"tool/.git/config": len(config)}))
    assert decided.harms == [Harm(f"{place.root}/tool/.git/config", HarmKind.STEERS)] and not decided.appends
    place.new("tool/.git/config", f"{config}[user]\n\tname = x\n")
    place.new("tool/.git/HEAD", "ref: refs/heads/other\n")
    place.keep(place.scene())
    assert "name = x" in (place.text("tool/.git/config") or "") and "other" in (place.text("tool/.git/HEAD") or "")


def test_a_log_that_is_a_directory_is_examined_like_an_output(place: Place) -> None:
    place.target("logs/one", TargetKind.LOG)
    for name in ("logs/one/suid", "logs/one/.snakemake/forge/origin", "logs/one/deep/x"):
        place.new(name)
    os.chmod(f"{place.layer.upper}/logs/one/suid", 0o6755)
    found = place.look()
    assert (found.logs, [move.place for move in found.outputs]) == ([], [f"{place.root}/logs/one"])
    assert found.log_directories == ["logs/one"] and found.private == [f"{place.layer.upper}/logs/one/.snakemake"]
    os.mkfifo(f"{place.layer.upper}/logs/one/fifo")
    assert place.look().rejected == ["logs/one/fifo is a FIFO"]
    with pytest.raises(IsADirectoryError):
        publish_one(found.outputs[0])
    os.unlink(f"{place.layer.upper}/logs/one/fifo")
    publish(found.outputs, place.layer.directory)
    assert stat.S_IMODE((place.root / "logs/one/suid").stat().st_mode) == 0o755


def test_a_log_that_is_a_fifo_is_no_reason_to_fail(place: Place) -> None:
    place.target("one.log", TargetKind.LOG)
    place.old("one.log")
    os.mkfifo(f"{place.layer.upper}/one.log")
    found = place.look()
    assert found.rejected == []
    assert publish_logs(found, "call") == (f"the log {place.root}/one.log could not be written: it is a FIFO",)
    assert not (place.root / "one.log").exists(), "it is of an earlier attempt"


def test_an_append_under_strict_is_appended_to_what_the_job_did_not_see(place: Place) -> None:
    place.new("log", "before\n")
    place.keep(place.scene())
    for line in ("before\n", "after\n"):
        place.new("log", line)
        scene = place.scene(appended={"log": 0})
        place.keep(replace(scene, layers=(scene.layers[0]._replace(shows_root=False),)))
    assert place.text("log") == "before\nbefore\nafter\n"


def test_an_append_is_appended_whatever_the_clock_of_a_file_server_says(place: Place) -> None:
    """The server's clock is behind, so lines that another job appends meanwhile seem older than this job."""
    place.new("log", "one\n")
    place.keep(place.scene())
    behind = time.time_ns() + 10**12
    for text, expected in (("one\nmine\n", "one\nother\nmine\n"), ("one\nother\n", "one\nother\nmine\nother\n")):
        (place.root / "log").write_text(expected.removesuffix(text.removeprefix("one\n")))
        place.new("log", text)
        place.keep(place.scene(behind, appended={"log": 4}))
        assert place.text("log") == expected


def test_the_clock_of_files_is_that_of_their_file_system(tmp_path: Path) -> None:
    before = time.clock_gettime_ns(5)
    (tmp_path / "before").touch()
    begin = file_time_ns(str(tmp_path))
    (tmp_path / "after").touch()
    assert before <= begin <= (tmp_path / "after").stat().st_ctime_ns
    assert file_time_ns(str(tmp_path / "missing")) >= before


def test_what_was_appended_is_appended(place: Place) -> None:
    place.new("log", "begin\n")
    place.keep(place.scene())
    begin = place.scene().begin_ns
    for line in ("one\n", "one\n", "two\n"):
        place.new("log", f"begin\n{line}")
        place.new("dir/new", line)
        place.opaque("dir")
        place.keep(place.scene(begin, appended={"log": 6, "dir/new": 0}))
    assert place.text("log") == "begin\none\none\ntwo\n"
    assert place.text("dir/new") == "one\none\ntwo\n"


def test_byte_code_is_left_as_it_is(place: Place) -> None:
    place.old("scripts/__pycache__/x.cpython-311.pyc")
    place.new("scripts/__pycache__/x.cpython-311.pyc")
    decided = decide(place.scene())
    assert not decided
    assert decided.harms == []


def test_a_refreshed_index_of_git_is_no_change(place: Place) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(place.root / "repo"), *words], check=True, capture_output=True)

    place.old("repo/a", "one")
    place.old("repo/long name/b", "two")
    git("init", "-q")
    git("add", "-A")
    index = place.root / "repo/.git/index"
    before = index.read_bytes()
    for path in ("repo/a", "repo/long name/b"):
        os.utime(place.root / path, (1, 1))
    git("status")
    assert index.read_bytes() != before
    place.new("repo/.git/index", "")
    new = Path(f"{place.layer.upper}/repo/.git/index")
    new.write_bytes(before)
    assert decide(place.scene()).harms == []
    git("update-index", "--chmod=+x", "a")
    assert len(decide(place.scene()).harms) == 1
    new.write_bytes(b"no index")
    assert len(decide(place.scene()).harms) == 1


def test_the_time_for_an_index_of_git_grows_with_its_size(place: Place) -> None:
    def entries(number: int) -> bytes:
        one = bytes(24) + (0o100644).to_bytes(4, "big") + bytes(12 + 20) + (200).to_bytes(2, "big") + b"x" * 200
        whole = b"DIRC" + struct.pack(">II", 2, number) + (one + bytes(2)) * number
        return whole + hashlib.sha1(whole, usedforsecurity=False).digest()

    def seconds(number: int) -> float:
        path = place.root / f"{number}/.git/index"
        path.parent.mkdir(parents=True)
        path.write_bytes(entries(number))
        begin = time.process_time()
        assert is_refreshed_index(str(path), str(path))
        return time.process_time() - begin

    assert seconds(16000) < 8 * 3 * seconds(2000)


def test_the_ledger_is_shortened_when_it_has_doubled(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job does not shorten it while all files that it names exist."""
    monkeypatch.setattr(owners, "_LEDGER_BYTES", 1000)
    state, ledger = f"{place.root}/.snakemake/forge", place.root / ".snakemake/forge/made.jsonl"
    inodes = []
    for number in range(200):
        place.old(f"d/{number}")
        path = f"{place.root}/d/{number}"
        Owners(str(place.root), state, ()).note([entry_of(path, path)])
        inodes.append(ledger.stat().st_ino)
    assert 2 < sum(old != new for old, new in pairwise(inodes)) < 10  # the kernel reuses the inode numbers of removed files
    assert all(Owners(str(place.root), state, ()).is_left(f"{place.root}/d/{number}") for number in range(200))
    for number in range(150):
        os.unlink(place.root / f"d/{number}")
    before = ledger.stat().st_size
    for number in range(150, 200):
        path = f"{place.root}/d/{number}"
        Owners(str(place.root), state, ()).note([entry_of(path, path)] * 3)
        Owners(str(place.root), state, ()).note([(path, 1, number + i) for i in range(3)])
    assert ledger.stat().st_size < 2 * before and f"{place.root}/d/0" not in ledger.read_text()


def test_a_log_of_an_earlier_attempt_does_not_stay(place: Place) -> None:
    place.old("log.txt")
    place.target("log.txt", TargetKind.LOG)
    assert place.look().stale_logs == [f"{place.root}/log.txt"]


def test_reads_of_what_is_declared_or_not_there_do_not_count(place: Place) -> None:
    for name in ("in.txt", "other.txt", "dir/a", ".snakemake/x"):
        place.old(name)
    place.target("out.txt")
    root = str(place.root)
    files = Files(FilePolicy.GUARD, layers=(root,), targets=tuple(place.targets), inputs=(f"{root}/in.txt", f"{root}/dir"))
    opened = {f"{root}/{name}" for name in ("in.txt", "other.txt", "dir/a", ".snakemake/x", "out.txt", "gone.txt")}
    assert undeclared_reads(files, root, opened) == ("other.txt",)


def test_a_lock_that_kept_nobody_out_is_no_success(place: Place) -> None:
    names = {"equal": ("1", "1"), "other": ("1", "2"), "lock": ("", ""), "appended": ("1", "12")}
    for name, (here, _) in names.items():
        place.new(name, here)
    place.keep(place.scene())
    for name, (_, written) in names.items():
        place.new(name, written)
    place.new("mine", "1")
    for locks, allow in ((True, False), (False, False), (True, True)):
        scene = replace(place.scene(0, allow=allow, appended={"appended": 1}), locks=locks)
        found = [Harm(f"{place.root}/{name}", HarmKind.LOCKED) for name in ("equal", "other") if locks and not allow]
        assert decide(scene).harms == found
    unchanged = replace(place.scene(), locks=True)
    assert decide(unchanged).harms == []
