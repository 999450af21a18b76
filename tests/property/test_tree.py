"""Trees of any names, modes, kinds and depth: kernel/tree.py does with them what the plain functions of Python do."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.kernel import tree
from snakemake_executor_plugin_forge.kernel.long_paths import Shortcut, reach
from snakemake_executor_plugin_forge.kernel.plain_paths import make_directories
from snakemake_executor_plugin_forge.record import checksum
from snakemake_executor_plugin_forge.sandbox.filesystem.disk_usage import Meter
from tests.child import in_child
from tests.ordinary import UID

pytestmark = pytest.mark.security

DEPTH = 5000
_BYTES = st.integers(1, 255).filter(lambda byte: byte != ord("/"))
_NAMES = st.one_of(
    st.lists(_BYTES, min_size=1, max_size=12).map(bytes),
    st.sampled_from([b"-rf", b" ", b"a\nb", b"\\", b"'\"", b"\xff", b"\xed\xb3\xbf", b"x" * 255, b"..."]),
).filter(lambda name: name not in (b".", b".."))
_MODES = st.sampled_from([0o777, 0o700, 0o555, 0o000, 0o311])
_FILES = st.tuples(st.just("file"), _MODES)
_LINKS = st.tuples(st.just("link"), st.sampled_from([b"..", b"/etc", b"missing", b"\xff\n"]))
_FIFOS = st.tuples(st.just("fifo"), _MODES)
_TREES = st.recursive(
    st.one_of(_FILES, _LINKS, _FIFOS),
    lambda inner: st.tuples(st.just("directory"), _MODES, st.dictionaries(_NAMES, inner, max_size=4)),
    max_leaves=12,
)
Kind = tuple[object, ...]


def _make(path: bytes, kind: Kind) -> None:
    match kind:
        case ("directory", int(mode), dict(entries)):
            os.mkdir(path)
            for name, inner in entries.items():
                _make(path + b"/" + name, inner)
            os.chmod(path, mode)
        case ("link", bytes(target)):
            os.symlink(target, path)
        case ("fifo", int(mode)):
            os.mkfifo(path, mode)
        case ("file", int(mode)):
            Path(os.fsdecode(path)).write_bytes(path)
            os.chmod(path, mode)


def _listed(root: str, *, readable: bool = False) -> dict[str, tuple[int, int, int, bytes]]:
    """All below a directory, as Python's plain functions see it for root."""
    found = {}
    for parent, directories, files in os.walk(root):
        for path in (parent, *(f"{parent}/{name}" for name in (*directories, *files))):
            status = os.lstat(path)
            content = b""
            if stat.S_ISREG(status.st_mode) and readable:
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.fsencode(os.readlink(path))
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            found[path.removeprefix(root)] = (status.st_mode, size, status.st_mtime_ns, content)
    return found


@contextmanager
def _tree(entries: dict[bytes, Kind]) -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        os.chmod(top, 0o755)
        _make(os.fsencode(top) + b"/root", ("directory", 0o777, entries))
        yield f"{top}/root"


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(_NAMES, _TREES, max_size=5))
def test_a_walk_sees_what_is_there(entries: dict[bytes, Kind]) -> None:
    with _tree(entries) as root:
        wanted = _listed(root)
        below = tree.Below(root)
        assert {below.name_of(near): os.lstat(near).st_mode for near in below} == {n: w[0] for n, w in wanted.items()}
        entered: list[str] = []
        left: list[str] = []
        for here in tree.walk(root, leave=True):
            (left if here.left else entered).append(here.path)
        assert sorted(entered) == sorted(left) == sorted(root + n for n, w in wanted.items() if stat.S_ISDIR(w[0]))
        assert sorted(f"/{below}/{entry.name}".replace("//", "/") for below, entry in tree.scan(root)) == sorted(
            name for name in wanted if name
        )
        assert _listed(root) == wanted, "a walk changes nothing"
        assert tree.remove_tree(root) and not os.path.lexists(root)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(_NAMES, _TREES, max_size=5))
def test_a_copy_is_the_same(entries: dict[bytes, Kind]) -> None:
    with _tree(entries) as root:
        wanted = _listed(root, readable=True)
        if any(stat.S_ISFIFO(mode) for mode, *_ in wanted.values()):
            with pytest.raises(OSError, match="FIFO"):
                tree.copy_tree(root, f"{root}.copy")
        else:
            tree.copy_tree(root, f"{root}.copy", owners=True)
            assert _listed(f"{root}.copy", readable=True) == wanted
        tree.remove_tree(f"{root}.copy")
        assert os.listdir(os.path.dirname(root)) == ["root"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@settings(deadline=None, max_examples=20)
@given(st.dictionaries(_NAMES, _TREES, max_size=5))
def test_closed_directories_keep_their_owner_out_of_nothing(entries: dict[bytes, Kind]) -> None:
    """Modes keep an ordinary user out, even of the user's own directories."""
    with _tree(entries) as root:
        wanted = _listed(root)
        for near in tree.Below(root):
            os.chown(near, UID, UID, follow_symlinks=False)
        os.chown(os.path.dirname(root), UID, UID)

        def look() -> None:
            below = tree.Below(root)
            assert {below.name_of(near): os.lstat(near).st_mode for near in below} == {
                name: mode for name, (mode, *_) in wanted.items()
            }

        in_child(look, ordinary=True)
        assert _listed(root) == wanted, "modes are as they were"
        assert in_child(lambda: tree.remove_tree(root), ordinary=True)
        assert not os.path.lexists(root)


def _deep(root: Path, name: str) -> None:
    """Make a tree of 5,000 levels with a file, a link and a closed directory at its end."""
    root.mkdir()
    way = tree.Descent(os.open(root, os.O_RDONLY))
    for _ in range(DEPTH):
        os.mkdir(name, dir_fd=way.fd)
        way.down(name)
    fd = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=way.fd)
    os.write(fd, b"x" * 5000)
    os.close(fd)
    os.symlink("nowhere", "link", dir_fd=way.fd)
    os.mkdir("closed", 0o000, dir_fd=way.fd)
    way.close()


@pytest.fixture
def memory() -> Iterator[Path]:
    directory = tempfile.mkdtemp(dir="/dev/shm")
    yield Path(directory)
    tree.remove_tree(directory)


def test_a_tree_of_5000_levels(memory: Path) -> None:
    root, copied = memory / "root", memory / "copy"
    _deep(root, "dir")
    most = max(len(os.listdir("/proc/self/fd")) for _ in tree.walk(str(root)))
    assert most < 64, "a bounded number of descriptors"
    tree.copy_tree(str(root), str(copied))
    assert tree.weigh(str(root))[0] == tree.weigh(str(copied))[0] > 0
    first, second = checksum.measure(str(root)), checksum.measure(str(copied))
    assert first is not None and second is not None and len(first.entries) == DEPTH + 3
    assert checksum.digest(first, checksum.WHOLE) == checksum.digest(second, checksum.WHOLE)
    below = tree.Below(str(root))
    last = next(str(root) + below.name_of(near) for near in below if near.endswith("/file"))
    with Shortcut() as near:
        assert os.stat(near(last)).st_ino == reach(os.stat, last).st_ino
    with pytest.raises(OSError, match="File name too long"):
        os.stat(last)
    reach(os.rename, last, f"{last}.renamed")
    assert reach(os.lstat, f"{last}.renamed").st_size == 5000
    (root / "inner").mkdir()
    Meter(str(root), str(root / "inner"), "/tmp", None).finish(60.0)
    make_directories(f"{os.path.dirname(last)}/one/two")
    assert reach(os.listdir, f"{os.path.dirname(last)}/one") == ["two"]
    assert tree.remove_tree(str(root)) and tree.remove_tree(str(copied))
    assert os.listdir(memory) == []


def test_the_way_back_leads_to_no_other_directory(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    way = tree.Descent(os.open(tmp_path, os.O_RDONLY))
    for name in ("a", "b", *(["c"] * 40)):
        if name == "c":
            os.mkdir("c", dir_fd=way.fd)
        way.down(name)
    shutil.move(tmp_path / "a" / "b", tmp_path / "b")  # b was left open; a is far above it

    def go_back() -> None:
        for _ in range(42):
            way.up()

    with pytest.raises(OSError, match="moved while"):
        go_back()
    way.close()
