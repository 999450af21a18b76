"""Failures that the sandbox causes: the verdict names path, rule and the line that allows the access, and that line works.

All cases fail in one workflow. A second workflow has the lines pasted in unchanged, and all cases pass.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from .. import ordinary
from ..conftest import Result, forge, run, write_workflow
from ..side_by_side import USERS


@dataclass(frozen=True)
class Case:
    """A rule that the sandbox stops. ``@`` is its name, ``OUT`` and ``TMP`` are existing directories, ``PORT`` is a server's port."""

    name: str
    rule: str
    kind: str
    subject: str  # a part of the reason
    line: str  # a part of the advice; "": no line allows it
    file: str = ""  # an input of this case only
    target: str = "@"


CASES = [
    Case("mv", 'input: "@.in"\noutput: "@.out"\nshell: "mv {input} {output}"', "input", "@.in", 'forge_files="open"', "@.in"),
    Case("rm", 'input: "@.in"\noutput: "@.out"\nshell: "cp {input} {output}; rm {input}"', "input", "@.in", 'forge_files="open"', "@.in"),
    Case("sed", 'input: "@.in"\noutput: touch("@.out")\nshell: "sed -i s/a/b/ {input}"', "input", "@.in", 'forge_files="open"', "@.in"),
    Case("gzip", 'input: "@.in"\noutput: "@.in.gz"\nshell: "gzip {input}"', "input", "@.in", 'forge_files="open"', "@.in"),
    Case("append", 'input: "@.in"\noutput: touch("@.out")\nlog: "@.log"\nshell: "(echo x >> {input}) 2> {log}"', "input", "@.in",
         'forge_files="open"', "@.in"),
    Case("link", 'input: "@.in"\noutput: "@.out"\nshell: "ln {input} {output}"', "input", "@.in", 'forge_files="open"', "@.in"),
    Case("rename", 'output: touch("@.out")\nshell: "python3 -c \'import os; os.rename(\\"@.d\\", \\"@.e\\")\'"', "violation", "@.d",
         'forge_undeclared="allow"', "@.d/x"),
    Case("outside", 'output: touch("@.out")\nshell: "echo x > OUT/sub/@.txt"', "outside", "OUT/sub/@.txt", 'write: ["OUT/sub"]'),
    Case("python", 'output: touch("@.out")\nrun:\n    open("OUT/@.txt", "w").write("x")', "outside", "OUT/@.txt", 'write: ["OUT"]'),
    Case("mkdir", 'output: touch("@.out")\nshell: "mkdir -p OUT/@/deep"', "outside", "OUT/@", 'write: ["OUT"]'),
    Case("hostfile", 'output: "@.out"\nshell: "cat TMP/ref.fa > {output}"', "private", "TMP/ref.fa", 'read: ["TMP"]'),
    Case("silent", 'output: touch("@.out")\nshell: "test -e TMP/ref.fa"', "private", "TMP/ref.fa", 'read: ["TMP"]'),
    Case("tool", 'output: "@.out"\nlog: "@.log"\nshell: "advised > {output} 2> {log}"', "command", "TMP/bin/advised", 'read: ["TMP/bin"]'),
    Case("library", 'output: touch("@.out")\nshell: "perl -MAdvised -e 1"', "private", "TMP/lib", 'read: ["TMP/lib"]'),
    Case("variable", 'output: "@.out"\nshell: "echo $FIRST_TOKEN > {output}"', "variable", "FIRST_TOKEN", 'envvars: "FIRST_TOKEN"'),
    Case("environ", 'output: "@.out"\nrun:\n    open(output[0], "w").write(os.environ["OTHER_TOKEN"])', "variable", "OTHER_TOKEN",
         'envvars: "OTHER_TOKEN"'),
    Case("silentmv", 'input: "@.in"\noutput: touch("@.out")\nshell: "mv {input} @.x 2> /dev/null"', "input", "@.in", 'forge_files="open"', "@.in"),
    Case("nofile", 'input: "@.in"\noutput: "@.out"\nshell: "mv {input} {output} || true"', "input", "@.in", 'forge_files="open"', "@.in"),
    Case("elsewhere", 'output: touch("@.out")\nshell: "cd OUT/sub; touch @.x"', "outside", "OUT/sub", 'write: ["OUT/sub"]'),
    Case("index", 'input: "OUT/ref.fa"\noutput: touch("@.out")\nshell: "f=$(realpath --relative-to=. {input}).fai; touch $f 2> /dev/null || '
         '(echo [E::fai] Failed to open FASTA index $f : Read-only file system; exit 1) >&2"', "outside", "OUT/ref.fa.fai", 'write: ["OUT"]'),
    Case("vague", 'input: "OUT/ref.fa"\noutput: touch("@.out")\nshell: "touch {input}.bai 2> /dev/null || '
         '(echo samtools index: failed to create or write index; exit 1) >&2"', "outside", "OUT", 'write: ["OUT"]'),
    Case("relative", 'output: "@.out"\nparams: os.path.relpath("TMP/ref.fa")\nshell: "cat {params} > {output}"', "private", "TMP/ref.fa", 'read: ["TMP"]'),
    Case("strict", 'output: "@.out"\nresources: forge_files="strict"\nshell: "cat @.side > {output}"', "undeclared", "@.side",
         'input: "@.side"', "@.side"),
    Case("unshare", 'output: touch("@.out")\nshell: "unshare -Um true"', "namespaces", "namespaces", 'forge_nested="on"'),
    Case("fail", 'output: "@_{s}.out"\nresources: forge_undeclared="fail"\nshell: "touch {output} @_{wildcards.s}.side"', "violation",
         "@_B.side", 'output: "@_{s}.side"', target="@_B.out"),
    Case("changes", 'output: touch("@.out")\nshell: "echo x >> @.raw"', "violation", "@.raw", 'update("@.raw")', "@.raw"),
    Case("agent", 'output: touch("@.out")\nshell: "python3 -c \'import socket; socket.socket(socket.AF_UNIX).connect(\\"OUT/agent\\")\'"',
         "socket", "OUT/agent", ""),
    Case("network", 'output: touch("@.out")\nresources: forge_network="off"\n'
         'shell: "python3 -c \'import socket; socket.create_connection((\\"127.0.0.1\\", PORT))\'"', "network", "network", 'forge_network="on"'),
]
INNOCENT = """
rule innocent_missing:
    output: "innocent.out"
    shell: "cat /nowhere/at.all > {output}"
rule innocent_tool:
    output: "innocent_tool.out"
    log: "innocent_tool.log"
    shell: "samtoolz > {output} 2> {log}"
"""


@dataclass(frozen=True)
class Advised:
    """A workflow that failed, and the same one with the verdicts' lines pasted into it."""

    failed: Result
    mended: Result
    again: dict[str, str]  # the values of OUT, TMP and PORT

    def text(self, text: str, name: str) -> str:
        return _filled(text, name, self.again)


@pytest.fixture(scope="module", params=USERS)
def advised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Advised]:
    place = tmp_path_factory.mktemp("advice")
    out, temporary = Path(tempfile.mkdtemp(dir="/opt")), Path(tempfile.mkdtemp(dir="/tmp"))
    (out / "sub").mkdir()
    (temporary / "bin").mkdir()
    (temporary / "lib").mkdir()
    (temporary / "lib" / "Advised.pm").write_text("package Advised; 1;\n")
    for directory in (out, temporary):
        (directory / "ref.fa").write_text(">A\n")
    tool = temporary / "bin" / "advised"
    tool.write_text("#!/bin/sh\necho tool\n")
    tool.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as agent, socket.socket() as server:
        agent.bind(str(out / "agent"))
        agent.listen()
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        names = {"OUT": str(out), "TMP": str(temporary), "PORT": str(server.getsockname()[1])}
        env = {"PATH": f"{temporary}/bin:{os.environ['PATH']}", "FIRST_TOKEN": "1", "OTHER_TOKEN": "2", "SSH_AUTH_SOCK": f"{out}/agent",
               "PERL5LIB": f"{temporary}/lib"}
        before: list[str] = []
        if request.param == "user" and os.geteuid() == 0:
            before = ordinary.prefix()
            for path in (out, temporary):
                path.chmod(0o755)
                ordinary.hand_over(path)
        try:
            failed = _run(place / "failed", {case.name: "" for case in CASES}, names, env, before)
            mended = _run(place / "mended", {case.name: _advice(failed, case) for case in CASES}, names, env, before)
            yield Advised(failed, mended, names)
        finally:
            shutil.rmtree(out)
            shutil.rmtree(temporary)


def _run(directory: Path, advice: dict[str, str], names: dict[str, str], env: dict[str, str], before: list[str]) -> Result:
    """Run all cases, each with its line of advice in its rule, the catalog or the Snakefile."""
    head, rules = "", ""
    catalog: dict[str, list[str]] = {"read": [], "write": []}
    directory = directory.resolve()
    directory.mkdir()
    for case in CASES:
        body = _filled(case.rule, case.name, names)
        where, _, line = advice[case.name].partition(": ")
        if where.endswith("forge.yaml"):
            for key, paths in yaml.safe_load(line)["defaults"]["paths"].items():
                catalog[key] += paths
        elif where.endswith("Snakefile"):
            head += line + "\n"
        elif line:
            assert where.endswith(f"rule {case.name}")
            if line.startswith("resources:"):
                body = re.sub("resources:.*\n", "", body)  # a rule may have resources only once
            body = re.sub("^output:", f"{line},", body, flags=re.MULTILINE) if line.startswith("output:") else f"{line}\n{body}"
        rules += f"rule {case.name}:\n{textwrap.indent(body, '    ')}\n"
        if case.file:
            path = directory / _filled(case.file, case.name, names)
            path.parent.mkdir(exist_ok=True)
            path.write_text("a\n")
    (directory / "Snakefile").write_text(head + rules + INNOCENT)
    if any(catalog.values()):
        (directory / "forge.yaml").write_text(yaml.safe_dump({"version": 1, "defaults": {"paths": catalog}}))
    if before:
        ordinary.hand_over(directory)
    targets = [_filled(case.target, case.name, names) for case in CASES] + ["innocent_missing", "innocent_tool"]
    result = run(directory, "-j4", "-k", *targets, env=env, before=before)
    assert (directory / ".snakemake/forge/runs").exists(), result.output
    return result


def _advice(failed: Result, case: Case) -> str:
    remedy = failed.attempt(case.name)["remedy"]
    declare = re.fullmatch(r"add (.*) to rule \w+, or .*", remedy) or re.fullmatch(r"if .*, add to it: (.*?)(?:, or .*)?", remedy)
    if declare is not None:
        return f"rule {case.name}: {declare[1]}"
    return re.sub(r" \(.*\)$", "", remedy) if case.line else ""


def _filled(text: str, name: str, names: dict[str, str]) -> str:
    for key, value in names.items():
        text = text.replace(key, value)
    return text.replace("@", name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict_names_the_refusal_and_the_line(advised: Advised, case: Case) -> None:
    attempt = advised.failed.attempt(case.name)
    expected = ("violation", None) if case.kind == "violation" else ("failed", "refused")
    assert (attempt["outcome"], attempt["cause"]) == expected, attempt
    assert [refusal["kind"] for refusal in attempt["refusals"]][:1] == [case.kind] * (case.kind != "violation")
    assert advised.text(case.subject, case.name) in attempt["happened"]
    assert advised.text(case.line, case.name) in attempt["remedy"]
    assert attempt["reason"] in advised.failed.output  # Snakemake's own message


@pytest.mark.parametrize("case", [case for case in CASES if case.line], ids=lambda case: case.name)
def test_with_the_line_the_job_passes(advised: Advised, case: Case) -> None:
    attempt = advised.mended.attempt(case.name)
    assert attempt["outcome"] == "succeeded", attempt["reason"]


def test_why_says_it(advised: Advised) -> None:
    said = forge(advised.failed.directory, "why", "mv").stdout
    assert "mv.in" in said
    assert 'add to rule mv: resources: forge_files="open"' in said


def test_other_failures_are_not_put_down_to_the_sandbox(advised: Advised) -> None:
    missing, tool = advised.failed.attempt("innocent_missing"), advised.failed.attempt("innocent_tool")
    assert (missing["cause"], missing["refusals"]) == ("exit code", [])
    assert tool["cause"] == "command not found"
    assert "samtoolz" in tool["reason"]


def test_notes_are_one_line_a_rule_and_names_of_any_bytes_print(workdir: Path) -> None:
    write_workflow(workdir, r"""
        rule all:
            input: expand("{s}.out", s=range(6)), "odd.out"
        rule side:
            output: "{s}.out"
            shell: "echo > {wildcards.s}.side; echo > {output}"
        rule odd:
            output: "odd.out"
            shell: r"printf x > $'o\xff\x1b[31m\nx'; touch {output}"
        rule bad:
            output: "bad.out"
            shell: r"printf '\033[2J\377 Error\n' >&2; false"
        """)
    result = run(workdir, "-j4", "-k", "all", "bad", env={"LC_ALL": "C"})
    assert "Traceback" not in result.output
    assert result.output.count("does not declare") == 2
    assert "Forge: rule side, 6 jobs, as s=" in result.output
    assert 'add to rule side: output: "{s}.side".' in result.output
    assert r"wrote o\xff\x1b[31m\nx, which" in result.output
    for words in (["jobs"], ["why", "odd"], ["why", "bad"], ["audit"], ["verify"], ["report", "--output", "-"]):
        said = forge(workdir, *words, env={"LC_ALL": "C"})
        assert said.returncode == 0, said.stderr
        assert "\x1b" not in said.stdout
        assert "\udcff" not in said.stdout
