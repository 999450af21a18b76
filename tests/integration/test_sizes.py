"""Jobs with thousands of inputs, outputs and directories of outputs: as with ``local``, with few mounts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import run
from ..side_by_side import USERS

pytestmark = pytest.mark.slow

WORKFLOW = """
rule all:
    input: "inputs.txt", expand("{{i}}.done", i=["dirs", "files"])
rule inputs:
    input: expand("in/{{i}}.txt", i=range(3000))
    output: "inputs.txt"
    log: "inputs.log"
    shell: "wc -l < /proc/self/mountinfo > {{log}}; cat in/*.txt | wc -l > {{output}}; (echo x >> in/999.txt) 2> /dev/null || echo refused >> {{log}}"
rule dirs:
    output: touch("dirs.done"), expand("{outside}/{{i}}/o.txt", i=range(1000))
    log: "dirs.log"
    shell: "wc -l < /proc/self/mountinfo > {{log}}; cd {outside}; for i in *; do echo $i > $i/o.txt; done"
rule files:
    output: touch("files.done"), expand("out/{{i}}.txt", i=range(3000))
    shell: "for i in `seq 0 2999`; do echo $i >> out/$i.txt; done"
rule changed:
    input: expand("in/{{i}}.txt", i=range(3000))
    output: touch("changed.done")
    shell: "echo x >> in/2999.txt"
"""


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory that an ordinary user can also reach."""
    with tempfile.TemporaryDirectory(prefix="forge-sizes-") as directory:
        yield Path(directory)


@pytest.mark.parametrize("user", USERS)
def test_many_inputs_and_directories_cost_few_mounts(user: str, tmp_path: Path, outside: Path) -> None:
    place = tmp_path / "work"
    (place / "in").mkdir(parents=True)
    for number in range(3000):
        (place / f"in/{number}.txt").write_text("x\n")
    (place / "Snakefile").write_text(WORKFLOW.format(outside=outside))
    before = ordinary.given_to(user, tmp_path, outside)
    result = run(place, "-j2", "all", before=before)
    assert result.code == 0, result.output
    assert (place / "inputs.txt").read_text() == "3000\n"
    mounts, refused = (place / "inputs.log").read_text().split()  # the first thousand inputs are read-only for the job: fault 49
    assert (int(mounts) < 1500, refused) == (True, "refused")
    assert int((place / "dirs.log").read_text()) < 500
    assert {path.read_text() for path in outside.glob("*/o.txt")} == {f"{i}\n" for i in range(1000)}
    assert sorted(path.name for path in outside.iterdir()) == sorted(map(str, range(1000)))
    assert {path.read_text() for path in (place / "out").iterdir()} == {f"{i}\n" for i in range(3000)}
    result = run(place, "-j2", "changed", before=before)
    (attempt,) = [a for a in result.attempts() if a["rule"] == "changed"]
    assert attempt["outcome"] == "violation" and "in/2999.txt" in attempt["reason"], attempt["reason"]
    assert (place / "in/2999.txt").read_text() == "x\n"
