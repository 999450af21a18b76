"""Groups, modes and access control lists of jobs' files: the directory decides them, as with ``local``."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from ..ordinary import GROUPS
from ..side_by_side import USERS, Both, Case

pytestmark = pytest.mark.slow  # runs each case with local, too

RULES = """
rule @:
    output: "@/a.txt", "@/new/deep/b.txt", directory("@/whole"), "@/there/c.txt", private="@/private.txt"
    log: "@/logs/@.log"
    benchmark: "@/@.tsv"
    shell:
        "v={config[version]}; echo $v | tee {output[0]} {output[1]} {output[3]} {log} > side.@.$v; mv side.@.$v @/side$v.txt; "
        "mkdir -p {output[2]}/inner @/extra$v/more; echo x > {output[2]}/inner/file; echo y > @/extra$v/more/file; "
        "echo t > @/there/side$v; mkdir -m 700 @/there/own$v; echo z > @/there/own$v/z; umask 027; echo p > {output.private}; "
        "mkdir @/umask$v; touch @/umask$v/file @/mode$v; chmod 604 @/mode$v; chmod 710 @/umask$v"
rule @_later:
    input: "@/a.txt"
    output: "@/later.txt", update("@/updated.txt")
    shell:
        "v={config[version]}; mkdir @/there/sub$v @/bare/more$v; echo $v >> @/there/sub$v/log; ln @/there/sub$v/log @/there/sub$v/hard; "
        "echo $v > @/bare/file$v; echo $v >> {output[1]}; echo a > {output[0]}"
rule @_run:
    output: "@/run.txt"
    run:
        open(output[0], "w").write("run\\n")
"""
NAMES = ("plain", "setgid", "foreign", "acl", "foreign_acl", "group")
CASES = [Case(name, RULES, before={"there/old": "old\n", "updated.txt": "0\n", "bare/deep/old": "1\n"}, differs=(r"\.tsv$",)) for name in NAMES]


def share(directory: Path) -> None:
    """Make the directories of a project: with its group, access control lists, and some of another owner."""
    for name in NAMES:
        place = directory / name
        for path in (place, place / "there", place / "bare"):
            owner = 1 if "foreign" in name else path.stat().st_uid
            if name != "plain":
                os.chown(path, owner, GROUPS[0])
            if name not in {"plain", "group"}:
                path.chmod(0o2775)
            if "acl" in name:
                os.setxattr(path, "system.posix_acl_access", _list(others=5))
                os.setxattr(path, "system.posix_acl_default", _list(others=0))


def _list(others: int) -> bytes:
    """An access control list that also admits a group: linux/posix_acl_xattr.h, posix_acl.h."""
    owner, group, named, mask, rest = 1, 4, 8, 16, 32
    none = 0xFFFFFFFF
    entries = [(owner, 7, none), (group, 7, none), (named, 7, GROUPS[1]), (mask, 7, none), (rest, others, none)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.fixture(scope="module", params=USERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    place = tmp_path_factory.mktemp("modes")
    return Both.run(place, CASES, user=request.param, versions=("version=1", "version=2"), share=share,
                    for_local=("--force-use-threads",))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_group_mode_and_lists_are_those_of_local(both: Both, case: Case) -> None:
    both.check(case)
