"""Outputs of other rules: a job's undeclared changes to them are never kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import run
from ..side_by_side import USERS

pytestmark = [pytest.mark.security, pytest.mark.slow]

RULES = """
rule made:
    output: "made/ready", "made/changed", "made/deleted", "made/mode", "made/attribute", "made/moved", "made/linked", directory("made/dir")
    log: "made/log"
    benchmark: "made/times.tsv"
    shell: "mkdir -p made/dir/sub; for f in {output} made/dir/file made/dir/sub/file; do [ -d $f ] || echo RIGHT > $f; done; echo RIGHT > {log}"
rule later:
    input: expand("{name}.done", name=DONE)
    output: "later", "new/deep/later", directory("new/dir")
    log: "logs/later.log"
    shell: "mkdir -p {output[2]}; for f in {output[0]} {output[1]} {output[2]}/x; do echo RIGHT > $f; done"
checkpoint pick:
    output: "picked.txt"
    shell: "echo one > {output}"
def picked(wildcards):
    checkpoints.pick.get()
    return "behind/one.txt"
rule behind:
    output: "behind/{x}.txt"
    shell: "sleep 1; echo RIGHT > {output}"
rule gather:
    input: picked
    output: "gathered.txt"
    shell: "cat {input} > {output}"
"""
SET = "import os; os.setxattr('made/attribute', 'user.job', b'1')"
# name: command, and the words of the message
BAD = {
    "changed": ("echo WRONG > made/changed", "changed made/changed"),
    "appended": ("echo WRONG >> made/changed", "changed made/changed"),
    "deleted": ("rm made/deleted", "deleted made/deleted"),
    "mode": ("chmod 600 made/mode", "changed made/mode"),
    "attribute": (f'python3 -c \\"{SET}\\"', "changed made/attribute"),
    "moved": ("mv made/moved mine", "deleted made/moved"),
    "over": ("echo WRONG > aside; mv aside made/moved", "changed made/moved"),
    "linked": ("ln made/linked hard; echo WRONG >> hard", "changed made/linked"),
    "symbolic": ("echo WRONG > aside2; ln -sf ../aside2 made/linked", "changed made/linked"),
    "kind": ("rm made/linked; mkdir made/linked; touch made/linked/x", "replaced made/linked"),
    "inside": ("echo WRONG > made/dir/sub/file", "changed made/dir/sub/file"),
    "beside": ("echo WRONG > made/dir/new", "wrote made/dir/new"),
    "deep": ("mkdir -p made/dir/a/b; echo WRONG > made/dir/a/b/c", "wrote made/dir/a/b/c"),
    "emptied": ("rm -rf made/dir", "deleted made/dir"),
    "again": ("rm -rf made/dir; mkdir made/dir; echo WRONG > made/dir/file", "changed made/dir/file"),
    "all": ("rm -rf made/[!r]*", "deleted made/attribute"),
    "closed": ("chmod 700 made/dir", "changed made/dir"),
    # "wrote" or "changed", if the rule later has already run
    "early": ("echo WRONG > later", " later"),
    "early_deep": ("mkdir -p new/deep new/dir; echo WRONG > new/deep/later; touch new/mine", " new/deep/later"),
    "early_dir": ("mkdir -p new/dir; echo WRONG > new/dir/y", " new/dir/y"),
    "log": ("echo WRONG > made/log; echo WRONG > made/times.tsv", "changed made/log"),
    "logged": ("echo WRONG >> made/log", "changed made/log"),
    "nolog": ("rm made/log; mkdir -p logs; touch logs/later.log", "deleted made/log"),
    "permitted": ("echo WRONG > made/changed", "changed made/changed"),
}
GOOD = {
    "same": "echo RIGHT > made/changed; touch made/deleted; mkdir -p new/dir new/deep made/dir",
    "code": "mkdir -p made/dir/__pycache__; echo x > made/dir/__pycache__/x.pyc",
    "dropped": "echo WRONG > made/changed",
    "sidecar": "echo one > made/changed.fai; mkdir -p side; echo two > side/mine",
    "sidecar2": "rm -f made/changed.fai; echo one > made/changed.fai; echo three >> side/mine",
}
RESOURCES = {"permitted": "forge_undeclared='allow'", "dropped": "forge_undeclared='discard'"}


def _snakefile() -> str:
    rules = [RULES]
    for name, command in [*((name, bad[0]) for name, bad in BAD.items()), *GOOD.items()]:
        resources = f"\n    resources: {RESOURCES[name]}" if name in RESOURCES else ""
        first = '"made/ready", "sidecar.done"' if name == "sidecar2" else '"made/ready"'
        rules.append(
            f'rule {name}:\n    input: {first}\n    output: "{name}.done"{resources}\n    shell: "{command}; touch {{output}}"'
        )
    # Forge learns of this output only when the checkpoint has ended
    rules.append(
        'rule guess:\n    input: "picked.txt"\n    output: "guess.done"\n'
        '    shell: "sleep 0.5; mkdir -p behind; echo WRONG > behind/one.txt; touch {output}"'
    )
    return f"DONE = {list(GOOD)}\n" + "\n".join(rules)


@pytest.mark.parametrize("user", USERS)
def test_outputs_of_other_rules_belong_to_their_jobs_alone(workdir: Path, user: str) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "Snakefile").write_text(_snakefile())
    before = ordinary.given_to(user, workdir)
    result = run(workdir, "-j4", "-k", *(f"{name}.done" for name in (*BAD, *GOOD)), "guess.done", "later", "gathered.txt",
                 before=before)
    attempts = {a["rule"]: a for a in result.attempts()}
    for name, (_, words) in BAD.items():
        assert attempts[name]["outcome"] == "violation", (name, result.output)
        assert words in attempts[name]["reason"], attempts[name]["reason"]
        owner = "later" if name.startswith("early") else "made"
        said = {"log": "the benchmark file", "logged": "the log", "nolog": "the log"}.get(name, "an output")
        assert f"{said} of rule {owner}" in attempts[name]["reason"]
        assert f"rule {name}" in attempts[name]["reason"]
    assert {name: attempts[name]["outcome"] for name in GOOD} == dict.fromkeys(GOOD, "succeeded"), result.output
    guess = attempts["guess"]
    assert (guess["outcome"], "behind/one.txt, an output of rule behind" in guess["reason"]) == ("violation", True)
    contents = [path.read_text() for d in ("made", "new", "behind") for path in (workdir / d).rglob("*") if path.is_file()]
    assert "WRONG\n" not in contents and contents.count("RIGHT\n") == 13, contents
    assert (workdir / "made/mode").stat().st_mode & 0o777 == 0o644
    assert sorted(p.name for p in workdir.iterdir() if p.is_file() and not p.name.endswith(".done")) == [
        "Snakefile", "gathered.txt", "later", "picked.txt",
    ]  # fmt: skip
    assert (workdir / "side/mine").read_text() == "two\nthree\n"

    # In a later run the owner is not in the DAG, and its files are older than all jobs.
    text = re.sub(r'\n    input: "made/ready"(?=\n)', "", _snakefile())
    (workdir / "Snakefile").write_text(text)
    again = run(workdir, "-j4", "-k", "--forcerun", "changed", "inside", "deleted", "--", "changed.done", "inside.done", "deleted.done",
                before=before)
    first = {a["directory"] for a in attempts.values()}
    latest = {a["rule"]: a for a in again.attempts() if a["directory"] not in first}
    assert set(latest) == {"changed", "inside", "deleted"}, again.output
    assert {latest[name]["outcome"] for name in ("changed", "inside", "deleted")} == {"violation"}, again.output
    assert "made/dir/sub/file, an output of rule made" in latest["inside"]["reason"]

    # A rule that once made a directory does not own other files in it.
    (workdir / "Snakefile").write_text("""
rule made:
    output: "first.done", "made/dir/file"
    shell: "echo WRONG > made/dir/users; echo RIGHT > {output[1]}; touch {output[0]}"
""")
    (workdir / "made/dir/users").write_text("a user's\n")
    os.chown(workdir / "made/dir/users", workdir.stat().st_uid, workdir.stat().st_gid)
    last = run(workdir, "-j1", "first.done", before=before)
    assert last.code == 1 and "made/dir/users" in last.attempts()[-1]["reason"], last.output
    assert (workdir / "made/dir/users").read_text() == "a user's\n"


LINKS = {
    "carries": ("mkdir -p res; ln -s {OUT}/x res/2", "would carry outputs of the workflow to another place: res/2"),
    "inwards": ("mkdir -p res; ln -s ../data/sub res/3", "would carry outputs of the workflow to another place: res/3"),
    "absolute": ("ln -s {OUT}/x absolute_link", "outside the working directory: absolute_link"),
    "relative": ("mkdir -p up; ln -s ../../outside/x up/link", "outside the working directory: up/link"),
    "dangling": ("ln -s {OUT}/nothing dangling_link", "outside the working directory: dangling_link"),
    "inner": ("mkdir -p tree/a; ln -s {OUT}/x tree/a/link", "outside the working directory: tree/a/link"),
    "trick": ("mkdir -p x/y z; ln -s ../../z x/y/l; ln -s x/y/l/../.. escaped", "outside the working directory: escaped"),
    "root": ("ln -s / root_link", "outside the working directory: root_link"),
    "permitted": ("mkdir -p res; ln -s {OUT}/x res/4", "would carry outputs of the workflow to another place: res/4"),
}
KEPT = "guarded/link", "guarded.link", "ref.fa", "latest", "kept/later", "here", "null", "kept/data", "allowed"


def test_links_carry_nothing_out_of_the_working_directory(workdir: Path) -> None:
    """Links to a file, links within the directory, and the user's own earlier links still work."""
    out = workdir.parent / "outside"
    for directory in (workdir, out / "x", out / "sub", out / "results"):
        directory.mkdir(parents=True, exist_ok=True)
    (out / "ref.fa").write_text("ref\n")
    (workdir / "data").symlink_to(out)
    (workdir / "users.txt").touch(0o664)
    (workdir / "results").symlink_to(out / "results")
    rules = [f'OUT = "{out}"']
    for name, (command, _) in LINKS.items():
        allow = '    resources: forge_undeclared="allow"\n' if name == "permitted" else ""
        rules.append(f'rule {name}:\n    output: "{name}.done"\n{allow}    shell: "{command}; touch {{output}}"')
    rules.append("""
rule behind:
    input: "{x}.done"
    output: "res/{n}/{x}"
    shell: "echo > {output}"
rule good:
    output: "good.done", "results/deep/own"
    shell: "ln -s {OUT}/ref.fa ref.fa; mkdir -p v1 kept; ln -sfn v1 latest; ln -s ../v1/later kept/later; ln -s $PWD/v1 here; "
           "ln -s /dev/null null; ln -s ../data kept/data; for f in {output}; do echo > $f; done"
rule protecting:
    output: protected(directory("guarded")), protected("guarded.link")
    shell: "mkdir guarded; echo > guarded/own; ln -s ../users.txt guarded/link; ln -s own.txt {output[1]}; echo > own.txt"
rule allowed:
    output: "allowed.done"
    resources: forge_undeclared="allow"
    shell: "ln -s {OUT}/x allowed; touch {output}"
""")
    (workdir / "Snakefile").write_text("\n".join(rules))
    others = [f"{name}.done" for name in LINKS if name not in ("carries", "inwards", "permitted")]
    targets = ["res/2/carries", "res/3/inwards", "res/4/permitted", "good.done", "allowed.done", "guarded", *others]
    result = run(workdir, "-j4", "-k", *targets)
    attempts = {a["rule"]: a for a in result.attempts()}
    assert {name: attempts[name]["outcome"] for name in LINKS} == dict.fromkeys(LINKS, "violation"), result.output
    assert [name for name, (_, words) in LINKS.items() if words not in attempts[name]["reason"]] == []
    assert attempts["good"]["outcome"] == attempts["allowed"]["outcome"] == "succeeded", result.output
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*")) == ["ref.fa", "results", "results/deep", "results/deep/own", "sub", "x"]
    modes = {name: (workdir / name).stat().st_mode & 0o222 for name in ("users.txt", "guarded/own", "own.txt")}
    assert modes == {"users.txt": 0o200, "guarded/own": 0, "own.txt": 0}
    links = {str(p.relative_to(workdir)) for p in workdir.rglob("*") if p.is_symlink() and ".snakemake" not in p.parts}
    assert links == {*KEPT, "data", "results"}
    assert (workdir / "results").readlink() == out / "results"


LED = """
rule theirs:
    output: "other/data"
    shell: "echo RIGHT > {output}"
rule at_once:
    input: "other/data"
    output: touch("at_once.done")
    shell: "ln -s other once"
rule in_two_steps:
    input: "other/data"
    output: touch("in_two_steps.done")
    shell: "mkdir step; ln -s step twice"
rule second_step:
    input: "in_two_steps.done"
    output: touch("second_step.done")
    shell: "rmdir step; ln -s other step"
rule once:
    input: "at_once.done"
    output: "once/data"
    shell: "echo WRONG > {output}"
rule twice:
    input: "second_step.done"
    output: "twice/data"
    shell: "echo WRONG > {output}"
"""


def test_a_link_leads_no_output_to_that_of_another_rule(workdir: Path) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "Snakefile").write_text(LED)
    result = run(workdir, "-j2", "-k", "once/data", "twice/data")
    assert result.attempt("at_once")["outcome"] == "violation", result.output
    assert result.attempt("twice")["outcome"] == "failed" and "an output of rule theirs" in result.attempt("twice")["reason"], result.output
    assert result.read("other/data") == "RIGHT\n"
