"""Files that jobs share while they run at the same time: tables with a header, databases, locks, hard links.

The jobs of a pair wait for each other in the shared cache directory, so they overlap even on a busy machine.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import Result, run, write_workflow
from ..side_by_side import USERS

pytestmark = pytest.mark.slow  # runs each case with local, too

_BOTH = "touch $XDG_CACHE_HOME/@.{wildcards.s}; until [ $(ls $XDG_CACHE_HOME/@.? | wc -l) -ge $TOGETHER ]; do sleep 0.1; done; "
_PYTHON = f"{sys.executable} -c"
SHARED = {  # the command of both jobs of a pair
    "header": "[ -s @.tsv ] || printf 'name\\tn\\n' > @.tsv; #; printf '{wildcards.s}\\t1\\n' >> @.tsv",
    "equal": "[ -s @.tsv ] || echo name > @.tsv; #; echo 1 >> @.tsv",
    "pandas": f"""{_PYTHON} 'import os; print("" if os.path.exists("@.tsv") else "a\\tb\\n", end="")' > $TMPDIR/head; #; """
              "cat $TMPDIR/head >> @.tsv; printf '{wildcards.s}\\t1\\n' >> @.tsv",
    "sqlite": f"""#; {_PYTHON} 'import sqlite3; base = sqlite3.connect("@.db"); base.execute("INSERT INTO t VALUES (\\"{{wildcards.s}}\\")"); base.commit()'""",
    "mkdir": "#; until mkdir @.lock 2> /dev/null; do sleep 0.1; done; n=$(cat @.n); echo $((n + 1)) > @.n; rmdir @.lock",
    "lockf": f"""#; {_PYTHON} 'import fcntl; file = open("@.n", "r+"); fcntl.lockf(file, fcntl.LOCK_EX); n = int(file.read()); """
             """file.seek(0); file.write(str(n + 1) + "\\n")'""",
    "log": "#; echo start >> @.log; echo {wildcards.s} >> @.log",
}  # fmt: skip
FIRST = f"""
rule first:
    output: "first.txt"
    shell:
        r'''
        {_PYTHON} 'import sqlite3; sqlite3.connect("sqlite.db").execute("CREATE TABLE IF NOT EXISTS t (x)")'
        for name in mkdir lockf; do echo 0 > $name.n; done
        echo 0000 > linked.txt; ln linked.txt other.txt; echo 0000 > replaced.txt; ln replaced.txt another.txt; touch {{output}}
        '''
"""
LAST = """
rule linked:
    input: "first.txt"
    output: "linked.done"
    {resources}
    shell: "echo x | dd of=linked.txt conv=notrunc status=none; cat other.txt > {output}"
rule replaced:
    input: "first.txt"
    output: "replaced.done"
    shell: "rm replaced.txt; echo x > replaced.txt; cat another.txt > {output}"
"""


def _workflow(directory: Path, resources: str, user: str, together: int) -> Result:
    """Run all pairs, with the line ``resources`` in each rule."""
    rules = [f"""
rule {name}:
    input: "first.txt"
    output: "{name}.{{s,[ab]}}"
    {resources}
    shell: r'''{command.replace("#;", _BOTH).replace("@", name)}; touch {{output}}'''
""" for name, command in SHARED.items()]  # fmt: skip
    write_workflow(directory, FIRST + "".join(rules) + LAST.replace("{resources}", resources))
    cache = directory.parent / "cache"
    cache.mkdir()
    environment = {"XDG_CACHE_HOME": str(cache), "TOGETHER": str(together)}
    if before := ordinary.given_to(user, directory.parent):
        before += ["env", *(f"{name}={value}" for name, value in environment.items())]
    targets = [f"{name}.{s}" for name in SHARED for s in "ab"]
    return run(directory, "-j20", "-k", *targets, "linked.done", "replaced.done", before=before, env=environment)


@pytest.fixture(scope="module", params=USERS)
def overlapping(request: pytest.FixtureRequest) -> Iterator[Result]:
    with ordinary.reachable() as place:
        yield _workflow(place / "work", "", request.param, 2)


def _lines(result: Result, name: str) -> list[str]:
    return sorted(result.read(name).splitlines())


def test_a_header_is_there_once_and_no_line_is_lost(overlapping: Result) -> None:
    assert {a["outcome"] for rule in ("header", "equal", "log") for a in overlapping.attempts(rule)} == {"succeeded"}, (
        overlapping.output
    )
    assert _lines(overlapping, "header.tsv") == ["a\t1", "b\t1", "name\tn"]
    assert _lines(overlapping, "equal.tsv") == ["1", "1", "name"]
    assert _lines(overlapping, "log.log") == ["a", "b", "start", "start"]


def test_what_cannot_be_merged_fails_one_of_the_jobs(overlapping: Result) -> None:
    for rule, words in {"pandas": "with the same first line, perhaps a header", "sqlite": "its lock did not keep that job out",
                        "mkdir": "its lock did not keep that job out", "lockf": "its lock did not keep that job out"}.items():  # fmt: skip
        attempts = overlapping.attempts(rule)
        assert sorted(a["outcome"] for a in attempts) == ["succeeded", "violation"], overlapping.output
        (failed,) = (a for a in attempts if a["outcome"] == "violation")
        assert words in failed["reason"] and failed["remedy"] == f'add resources: forge_files="open" to rule {rule}'
    assert len(_lines(overlapping, "pandas.tsv")) == 2
    assert _lines(overlapping, "mkdir.n") == _lines(overlapping, "lockf.n") == ["1"]


def test_a_file_with_other_names_is_replaced_but_not_changed(overlapping: Result) -> None:
    (linked,), (replaced,) = overlapping.attempts("linked"), overlapping.attempts("replaced")
    assert linked["outcome"] == "violation" and "linked.txt was changed, but it has other names" in linked["reason"]
    assert replaced["outcome"] == "succeeded", replaced
    read = [overlapping.read(f"{name}.txt") for name in ("linked", "other", "replaced", "another")]
    assert read == ["0000\n", "0000\n", "x\n", "0000\n"]


@pytest.mark.parametrize("user", USERS)
def test_with_the_line_they_share_the_files(user: str) -> None:
    with ordinary.reachable() as place:
        result = _workflow(place / "work", 'resources: forge_files="open"', user, 1)
        assert result.code == 0, result.output
        assert _lines(result, "mkdir.n") == _lines(result, "lockf.n") == ["2"]
        assert result.read("linked.done") == result.read("other.txt") == "x\n00\n"
        with closing(sqlite3.connect(result.directory / "sqlite.db")) as base:
            assert sorted(base.execute("SELECT x FROM t")) == [("a",), ("b",)]
