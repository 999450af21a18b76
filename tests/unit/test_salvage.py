"""Files of a failed job: kept under numbers, the smallest first; and files that a process has open for writing."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.kernel import open_files, process_tree
from snakemake_executor_plugin_forge.sandbox.filesystem.overlay import Layer
from snakemake_executor_plugin_forge.spec.job import Files, Target
from snakemake_executor_plugin_forge.staging.salvage import INDEX, keep, undeclared

trees = st.dictionaries(st.lists(st.sampled_from(["a", "b.bam", "c d", "e\nf"]), min_size=1, max_size=3).map("/".join),
                        st.integers(0, 50), max_size=8)  # fmt: skip


@given(trees, st.integers(0, 100), st.integers(0, 5))
def test_what_is_kept_has_numbers_and_what_is_not_is_larger(tree: dict[str, int], most_bytes: int, most_files: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        place, target = Path(name, "layer"), f"{name}/kept"
        place.mkdir()
        sizes: dict[str, int] = {}
        for path, size in tree.items():
            if not any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in sizes):
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(b"x" * size)
                sizes[path] = size
        found = keep([(f"{place}/{top}", top) for top in sorted({p.split("/")[0] for p in sizes})], target, most_bytes, most_files)
        assert sorted([*found.places, *(path for path, _ in found.left_out)]) == sorted(sizes)
        assert len(found.places) <= most_files
        assert sum(sizes[path] for path in found.places) <= most_bytes
        assert max([sizes[p] for p in found.places], default=0) <= min([size for _, size in found.left_out], default=math.inf)
        names = set(os.listdir(target)) if found.places else set()
        assert names == ({str(number + 1) for number in range(len(found.places))} | {INDEX} if found.places else set())
        for number, path in enumerate(found.places, 1):
            assert os.path.getsize(f"{target}/{number}") == sizes[path]
        if found.places:
            assert len(Path(target, INDEX).read_text().splitlines()) == len(found.places)


def test_only_what_a_job_wrote_itself_and_does_not_declare_is_salvaged(tmp_path: Path) -> None:
    layer = Layer(str(tmp_path / "work"), str(tmp_path / "layer"), str(tmp_path / "work"))
    upper = Path(layer.upper)
    for path in ("out/a.txt", "out/tool.log", ".snakemake/x", "copied.txt", "changed.txt", "in.txt"):
        (upper / path).parent.mkdir(parents=True, exist_ok=True)
        (upper / path).write_text("new")
    Path(layer.root).mkdir()
    for name, times in (("copied.txt", (1, 1)), ("changed.txt", (2, 2))):
        Path(layer.root, name).write_text("old")
        os.utime(Path(layer.root, name), times)
        os.utime(upper / name, (1, 1))
    files = Files(targets=(Target(f"{layer.root}/out/a.txt", "out/a.txt"),), inputs=(f"{layer.root}/in.txt",))
    assert sorted(undeclared(files, [layer])) == [
        (f"{upper}/{name}", f"{layer.root}/{name}") for name in ("changed.txt", "out/tool.log")]  # fmt: skip


@pytest.mark.parametrize("way", ["open", "mapped"])
def test_a_process_says_what_it_writes(tmp_path: Path, way: str) -> None:
    path, other = tmp_path / "out\nput", tmp_path / "read"
    path.write_bytes(b"x" * 10)
    other.write_bytes(b"y")
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        file = open(path, "r+b")  # noqa: SIM115
        reading = open(other, "rb")  # noqa: SIM115
        shared = mmap.mmap(file.fileno(), 10)
        if way == "mapped":
            file.close()
        os.dup2(go[0], 0)
        os.write(ready[1], b"x")
        os.read(0, 1)
        os._exit(len(shared) * reading.fileno() * 0)
    os.read(ready[0], 1)
    try:
        found = set(open_files.written(pid))
        assert str(path) in found
        assert str(other) not in found
        assert open_files.reads_pipe(pid)
        assert open_files.is_forked_only(process_tree.stat(pid))
        assert not open_files.is_forked_only(process_tree.stat(1))
        assert not process_tree.is_ending(pid)
    finally:
        os.write(go[1], b"x")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert process_tree.is_ending(pid)
        os.waitpid(pid, 0)
        for fd in (*ready, *go):
            os.close(fd)
