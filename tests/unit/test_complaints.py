"""Messages of programs in many languages about refused calls, and patterns of names."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.spec.complaints import complaints, lacks, reads
from snakemake_executor_plugin_forge.spec.printable import printable
from snakemake_executor_plugin_forge.spec.wildcards import lacking, without_wildcards


@pytest.mark.parametrize(
    ("line", "error", "name"),
    [
        ("mv: cannot move 'in put.txt' to 'out.txt': Device or resource busy", errno.EBUSY, "in put.txt"),
        ("/usr/bin/bash: line 1: /data/x y.txt: Read-only file system", errno.EROFS, "/data/x y.txt"),
        ("/bin/sh: 1: x.txt: Value too large for defined data type", errno.EOVERFLOW, "x.txt"),
        ("OSError: [Errno 30] Read-only file system: '/data/x'", errno.EROFS, "/data/x"),
        ("OSError: [Errno 18] Invalid cross-device link: 'a' -> 'b'", errno.EXDEV, "a"),
        ("java.nio.file.FileSystemException: /data/x: Read-only file system", errno.EROFS, "/data/x"),
        ("java.io.FileNotFoundException: /data/x (Read-only file system)", errno.EROFS, "/data/x"),
        ("  cannot open file '/data/x.rds': Read-only file system", errno.EROFS, "/data/x.rds"),
        ("open /data/my dir/x: read-only file system", errno.EROFS, "/data/my dir/x"),
        ("Error: EROFS: read-only file system, open '/data/x'", errno.EROFS, "/data/x"),
        ('Error: Os { code: 30, message: "…" } /data/x (os error 30)', errno.EROFS, "/data/x"),
        ("OSError: unable to open file (name = '/data/x.h5', errno = 30, error message = '…')", errno.EROFS, "/data/x.h5"),
        ("touch: „/data/x“ kann nicht berührt werden: Das Dateisystem ist nur lesbar", errno.EROFS, "/data/x"),
        ("ssh: Could not resolve hostname x: Name or service not known", errno.ENETUNREACH, "x"),
    ],
)
def test_the_error_and_the_path_are_found(line: str, error: int, name: str) -> None:
    german = {errno.EROFS: "Das Dateisystem ist nur lesbar"}
    found = [complaint for complaint in complaints(f"before\n{line}\nafter\n", german) if complaint.error == error]
    assert name in found[0].names
    assert not any("(Read-only" in name for name in found[0].names)
    assert not {"/usr/bin/bash", "/bin/sh"} & set(found[0].names)  # the shell that says so


def test_a_variable_is_missing_where_a_line_says_so() -> None:
    assert lacks("KeyError: 'MY_TOKEN'", "MY_TOKEN")
    assert lacks("bash: line 1: MY_TOKEN: unbound variable", "MY_TOKEN")
    assert not lacks("KeyError: 'MY_TOKEN_2'", "MY_TOKEN")
    assert not lacks("MY_TOKEN accepted", "MY_TOKEN")
    assert [reads(text, "X_KEY") for text in ("echo ${X_KEY:-}", "$X_KEY", "$X_KEYS", "X_KEY")] == [True, True, False, False]


def test_what_is_common_to_all_jobs_of_a_rule() -> None:
    assert without_wildcards("/data/run/A/x.txt", {"s": "A"}) == "/data/run"
    assert without_wildcards("/data/run/x.txt", {"s": "A"}) == "/data/run/x.txt"
    assert without_wildcards("/data/a/b/c", {"s": "a/b"}) == "/data"
    assert lacking("x/1.y", {"s": "1", "t": "2"}) == ("t",)


@given(st.binary(max_size=20))
def test_names_of_any_bytes_can_be_printed(name: bytes) -> None:
    shown = printable(name.decode("utf-8", "surrogateescape"))
    assert shown.isprintable()
    assert shown.encode().decode() == shown


def test_names_are_shown_as_they_are_where_they_can_be() -> None:
    assert printable("Grüße 日本 x.txt") == "Grüße 日本 x.txt"
    assert printable("a\nb\x1b[31m\udcff") == r"a\nb\x1b[31m\xff"
