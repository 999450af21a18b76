"""Benchmark files: Forge raises the figures that it knows, and leaves the rest as Snakemake wrote it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.record.benchmark import Figures, improve, improved

FIGURES = Figures(max_rss_bytes=200 * 2**20, cpu_seconds=3.0, io_read_bytes=0, io_write_bytes=2**20)
HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time"
POLLED = "2.0000\t0:00:02\t10.00\t20.00\t8.00\t9.00\t5.00\t0.00\t50.00\t1.00"
NOTHING = "2.0000\t0:00:02" + "\tNA" * 8


@pytest.mark.parametrize(("row", "new"), [
    (POLLED, "2.0000\t0:00:02\t200.00\t20.00\t8.00\t9.00\t5.00\t1.00\t150.00\t3.00"),
    (NOTHING, "2.0000\t0:00:02\t200.00\tNA\tNA\tNA\t0.00\t1.00\t150.00\t3.00"),
    ("2.0000\t0:00:02\t300.00\t1\t1\t1\t9.00\t9.00\t500.00\t10.00",) * 2,
])
def test_only_upwards_and_only_what_is_known(row: str, new: str) -> None:
    assert improved(f"{HEADER}\n{row}\n", FIGURES, jsonl=False) == f"{HEADER}\n{new}\n"


@pytest.mark.parametrize("text", ["", HEADER + "\n", f"{HEADER}\n{POLLED}\n{POLLED}\n", "a\tb\n1\n", "\0"])
def test_what_is_not_one_record_stays(text: str) -> None:
    assert improved(text, FIGURES, jsonl=False) == text
    assert improved(text, FIGURES, jsonl=True) == text


def test_jsonl() -> None:
    text = json.dumps({"cpu_time": "NA", "jobid": 3, "max_rss": 1.5, "s": 2.0, "wildcards": {"a": "ü"}})
    record = json.loads(improved(text + "\n", FIGURES, jsonl=True))
    assert record == {"cpu_time": 3.0, "jobid": 3, "max_rss": 200.0, "s": 2.0, "wildcards": {"a": "ü"}}
    assert list(record) == sorted(record)


def test_time_and_inode_stay_and_links_are_not_followed(tmp_path: Path) -> None:
    path, link, fifo = tmp_path / "b.tsv", tmp_path / "link.tsv", tmp_path / "fifo.tsv"
    path.write_text(f"{HEADER}\n{POLLED}\n")
    os.utime(path, (1e9, 1e9))
    before = path.stat()
    link.symlink_to(path)
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="symbolic"):
        improve(str(link), FIGURES)
    with pytest.raises(OSError, match="no regular file"):
        improve(str(fifo), FIGURES)
    improve(str(path), FIGURES)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert "200.00" in path.read_text()
