"""Paths without links: a racing process that exchanges directories for links leads nothing elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import plain_paths, syscalls
from snakemake_executor_plugin_forge.record.jsonfile import replace_file
from snakemake_executor_plugin_forge.staging import journal
from snakemake_executor_plugin_forge.staging.interrupted import recover
from snakemake_executor_plugin_forge.staging.journal import JOURNAL, Journal, Move
from snakemake_executor_plugin_forge.staging.publish import publish, publish_one

SWAP = """
import sys
from snakemake_executor_plugin_forge.kernel.syscalls import exchange_at
print(flush=True)
while True:
    exchange_at(-100, sys.argv[1], -100, sys.argv[2])
"""


@pytest.fixture(params=["openat2", "step by step"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The calls of Linux 5.6, and those of older kernels."""
    if request.param != "openat2":
        monkeypatch.setattr(plain_paths, "_has_openat2", lambda: False)
    return str(request.param)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("work/res/sub", "staging", "elsewhere/sub"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    return tmp_path.resolve()


def staged(root: Path, *names: str) -> list[Move]:
    (root / "staging").mkdir(exist_ok=True)  # publishing removes it when it is empty
    moves = []
    for name in names:
        source = root / "staging" / name.replace("/", "-")
        source.write_text("new\n")
        moves.append(Move.of(str(source), str(root / "work" / name)))
    return moves


def test_a_parent_that_is_a_link_is_refused(root: Path, kind: str) -> None:
    moves = staged(root, "res/sub/a", "other/b")
    (root / "work/res").rename(root / "work/aside")
    (root / "work/res").symlink_to(root / "elsewhere")
    with pytest.raises(OSError, match=r"link|Not a directory"):
        publish(moves, str(root / "staging"))
    with pytest.raises(OSError, match=r"link|Not a directory"):
        publish_one(moves[0])
    assert list((root / "elsewhere/sub").iterdir()) == []
    assert not (root / "work/other/b").exists()
    assert not (root / "staging" / JOURNAL).exists()


def test_a_journal_is_not_replayed_through_a_link(root: Path, kind: str) -> None:
    moves = staged(root, "res/sub/a", "res/sub/b")
    journal.write(str(root / "staging"), Journal(tuple(moves), "", False))
    (root / "work/res").rename(root / "work/aside")
    (root / "work/res").symlink_to(root / "elsewhere")
    with suppress(OSError):
        recover(str(root / "staging"), None)
    assert list((root / "elsewhere/sub").iterdir()) == []


def test_long_paths_and_names_of_any_bytes(root: Path, kind: str) -> None:
    deep = str(root) + "/" + "/".join(["d" * 200] * 12) + "/odd \udcff\nname"
    plain_paths.make_directories(deep)
    with plain_paths.near(f"{deep}/file") as short:
        Path(short).write_text("x")
        assert os.listdir(os.path.dirname(short)) == ["file"]
    with pytest.raises(OSError, match="no regular file"):
        plain_paths.open_regular(str(root / "work"))
    with pytest.raises(OSError, match=r"link|symbolic"):
        plain_paths.open_regular(str(root / "link"))


@pytest.fixture
def swapping(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that exchanges the parent of the outputs for a link, again and again."""
    words = [str(root / "work/res"), str(root / "link")]
    with subprocess.Popen([sys.executable, "-c", SWAP, *words], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_nothing_appears_behind_a_link_that_is_swapped_in(root: Path, kind: str, swapping: subprocess.Popen[bytes]) -> None:
    """A publication is whole or not begun, and nothing appears behind the link."""
    outcomes: set[str] = set()
    number = 0
    while len(outcomes) < 2 or number < 300:  # the outcome depends on when the two processes have a CPU
        number += 1
        names = [f"res/sub/{number}-{n}" for n in range(3)]
        moves = staged(root, *names)
        try:
            publish(moves, str(root / "staging"))
        except OSError:
            outcomes.add("refused")
        else:
            outcomes.add("published")
        assert list((root / "elsewhere/sub").iterdir()) == []
        left = [os.path.exists(move.source) for move in moves]
        assert len(set(left)) == 1, left
    swapping.kill()
    swapping.wait()
    found = [path for path in root.rglob("*") if path.is_file()]
    assert all(path.read_text() == "new\n" for path in found)


def test_a_path_with_dots_opens_while_others_rename(root: Path, swapping: subprocess.Popen[bytes]) -> None:
    """openat2(2) gives EAGAIN for it if any process renames or mounts at that moment; a listener took that for a missing file."""
    top = os.open("/", os.O_PATH)
    for _ in range(20_000):
        os.close(syscalls.open_in_root(top, f"{root}/staging/../elsewhere", os.O_PATH))
    os.close(top)


def test_a_file_is_replaced_beside_a_link_that_somebody_put_at_its_temporary_name(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o600)
    (tmp_path / f".run.prom.{os.getpid()}").symlink_to(key)
    replace_file(f"{tmp_path}/run.prom", "new", mode=0o644)
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("secret", 0o600)
    assert ((tmp_path / "run.prom").read_text(), (tmp_path / "run.prom").stat().st_mode & 0o777) == ("new", 0o644)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "run.prom"]
