"""The host's interpreter and virtual environment on a disk for the guest.

Over 9p every import costs round trips to qemu, and starting Snakemake takes twice as long as from a disk.
So the trees are copied into an ext4 image, with compiled modules, once for each state of their files.
"""

import configparser
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.util import cache_from_source
from pathlib import Path

from tests.host import guest_cache, guest_image
from tests.host.guest_cache import GuestError

# Of an interpreter's library; for the tests of Python itself, for embedding it, for its editor.
BLOCK = 4096
UNUSED = re.compile(r"test|idlelib|turtledemo|tkinter|ensurepip|config-.*")


def disk() -> AbstractContextManager[Path]:
    """Hold the directory with `python.img`, on which each of trees() is a directory."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for tree in trees():
        digest.update(f"{tree}\n".encode())
        for path, entry in _files(tree):
            status = entry.stat(follow_symlinks=False)
            target = Path(entry).readlink() if entry.is_symlink() else ""
            digest.update(f"{path} {status.st_mode} {status.st_size} {status.st_mtime_ns} {target}\n".encode())
    return guest_cache.entry("python", digest.hexdigest()[:16], _build)


def trees() -> list[Path]:
    """List what the disk holds: the interpreter and the venv. The system's interpreter the guest has itself."""
    found = [Path(sys.prefix)]
    if sys.base_prefix != sys.prefix:
        found.insert(0, Path(sys.base_prefix))
    return [path for path in found if path != Path("/usr")]


def places() -> list[tuple[str, Path]]:
    """Return pairs: directory on the disk, where to mount it in the guest."""
    found = [(str(number), tree) for number, tree in enumerate(trees())]
    # A venv may refer to its interpreter by a path with symbolic links or by the real one.
    return found + [(name, tree.resolve()) for name, tree in found if tree.resolve() != tree]


def _is_unused(directory: Path) -> bool:
    """Whether the guest can do without a directory of an interpreter's tree."""
    if directory.name == "__pycache__" or sys.prefix == sys.base_prefix:
        return directory.name == "__pycache__"
    library = Path(sys.base_prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if directory == library / "site-packages":
        return not _sees_system_packages()
    return directory.parent == library and bool(UNUSED.fullmatch(directory.name))


def _sees_system_packages() -> bool:
    """Whether the venv uses the interpreter's own site-packages."""
    settings = configparser.ConfigParser()
    settings.read_string("[venv]\n" + (Path(sys.prefix) / "pyvenv.cfg").read_text())
    return settings.getboolean("venv", "include-system-site-packages", fallback=False)


def _files(directory: Path, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Go through all files that belong on the disk, with their paths, in a fixed order."""
    with os.scandir(directory) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        if not entry.is_dir(follow_symlinks=False):
            yield below + entry.name, entry
        elif not _is_unused(Path(entry.path)):
            yield from _files(Path(entry.path), f"{below}{entry.name}/")


def _copy(tree: Path, target: Path) -> int:
    """Copy a tree with its compiled modules; return the size that it takes on a disk."""
    size = 0
    for path, entry in _files(tree):
        sources = [Path(entry.path)]
        if path.endswith(".py"):
            sources.append(Path(cache_from_source(entry.path)))
        for source in sources:
            if source.is_symlink() or source.exists():
                place = target / source.relative_to(tree)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place, follow_symlinks=False)
                size += source.lstat().st_size + BLOCK
    return size


def _build(directory: Path) -> None:
    """Copy the trees, compile what is not compiled, and make the image."""
    guest_image.install(guest_image.TO_BOOT)
    stage = directory / "stage"
    stage.mkdir()
    size = 0
    for name, tree in places():
        target = stage / name
        if target.exists():
            continue
        try:
            size += _copy(tree, target)
        except OSError as error:
            raise GuestError(f"cannot copy {tree} for the guest: {error}") from error
        # Some packages carry modules that cannot be compiled; that is no failure.
        compiler = ["-m", "compileall", "-qq", "-j", "0", "-s", str(target), "-p", str(tree), str(target)]
        guest_cache.run(["sh", "-c", '"$@" || true', "sh", sys.executable, *compiler])
    guest_image.make_disk(stage, directory / "python.img", size + size // 2 + (64 << 20))
    shutil.rmtree(stage)
