"""Jobs' processes that know of each other: by their ids, by locks, and by files to which all of them append."""

from __future__ import annotations

import sys

import pytest

from ..side_by_side import USERS, Both, Case

pytestmark = pytest.mark.slow  # runs each case with local, too

_DIFFERENT = 'shell: "cat {input} | tr \' \' \'\\\\n\' | sort -n | uniq -c | awk \'$1 > 1\' > {output}"'

_INNER = """
rule all:
    input: expand("{s}.txt", s="ab"), "r.txt"
rule one:
    output: "{s}.txt"
    resources: mem_mb=50, runtime=1
    shell: "echo {wildcards.s} >> progress; touch {output}"
rule run:
    output: "r.txt"
    run:
        open(output[0], "w").write("r")
ruleorder: run > one
"""
_SNAKEMAKE = f"{sys.executable} -m snakemake -s $PWD/@/inner.smk -j2"


CASES = [
    Case("shell", f"""
        rule @:
            input: expand("@/{{s}}.ids", s=range(8))
            output: "@/twice.txt"
            {_DIFFERENT}
        rule @_one:
            output: "@/{{s}}.ids"
            shell: "echo $$ > {{output}}; for i in 1 2 3; do sh -c 'echo $$' >> {{output}}; done"
        """, differs=(r"\.ids$",)),
    Case("temporary", """
        rule @:
            input: expand("@/{s}.txt", s=range(4))
            output: "@/all.txt"
            shell: "cat {input} > {output}"
        rule @_one:
            output: "@/{s}.txt"
            resources: forge_files="open"
            shell: "echo {wildcards.s} > @/work.$$.tmp; sleep 0.2; mv @/work.$$.tmp {output}"
        """),
    Case("append", """
        rule @:
            input: expand("@/{s}.txt", s="abcdefgh")
            output: "@/sorted.txt"
            shell: "sort @/progress.log > {output}; grep -c head < @/dir/last.log >> {output}"
        rule @_one:
            output: "@/{s}.txt"
            shell:
                "echo {wildcards.s} >> @/progress.log; echo equal >> @/equal.log; mkdir -p @/dir; exec 3>> @/dir/fd.log; "
                "echo head > @/dir/last.log; echo {wildcards.s} >> @/dir/last.log; echo equal >&3; "
                "sleep 0.2; echo {wildcards.s} >> @/progress.log; touch {output}"
        """, differs=("progress.log$", "last.log$")),
    Case("lock", """
        rule @:
            output: "@/done.txt"
            shell: "flock @/lock true; flock -s @/shared true; flock {output} true; flock $TMPDIR/lock true; touch {output}"
        """, says=("locked lock/lock,", 'add resources: forge_files="open" to rule lock')),
    Case("unlocked", """
        rule @:
            output: "@/done.txt"
            resources: forge_files="open"
            shell: "flock @/lock true; touch {output}"
        """, check=lambda _, attempts: attempts[0]["notes"] == []),
]  # fmt: skip
# One version only: each of their blocks is a start of Snakemake.
ONCE = [
    Case("python", f"""
        rule @:
            input: expand("@/{{s}}.run", s=range(2)), expand("@/{{s}}.script", s=range(2))
            output: "@/twice.txt"
            {_DIFFERENT}
        rule @_run:
            output: "@/{{s}}.run"
            run:
                import os, subprocess
                ids = [str(os.getpid()), subprocess.check_output(["sh", "-c", "echo $$"], text=True).strip()]
                open(output[0], "w").write("\\n".join(ids) + "\\n")
        rule @_script:
            output: "@/{{s}}.script"
            script: "@/ids.py"
        """, before={"ids.py": "import os\nopen(snakemake.output[0], 'w').write(f'{os.getpid()}\\n')\n"}, differs=(r"\.(run|script)$",)),
    Case("inner", f"""
        rule @:
            output: "@/done.txt"
            shell: "{_SNAKEMAKE} --executor forge --directory @/in_forge >&2; touch {{output}}"
        rule @_profile:
            output: "@/profile.txt"
            shell: "SNAKEMAKE_PROFILE=$PWD/@ {_SNAKEMAKE} --directory @/in_profile >&2; touch {{output}}"
        rule @_local:
            output: "@/local.txt"
            run:
                shell("{_SNAKEMAKE} --executor local --force-use-threads --directory @/in_local >&2")
                open(output[0], "w").close()
        """, before={"inner.smk": _INNER, "config.yaml": "executor: forge\n"}, differs=(r"\.snakemake", "progress$")),
]  # fmt: skip


@pytest.fixture(scope="module", params=USERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both.run(tmp_path_factory.mktemp("processes"), CASES, user=request.param, versions=("run=1", "run=2"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_files_are_those_of_local(both: Both, case: Case) -> None:
    both.check(case)


@pytest.fixture(scope="module", params=USERS)
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both.run(tmp_path_factory.mktemp("once"), ONCE, user=request.param)


@pytest.mark.parametrize("case", ONCE, ids=lambda case: case.name)
def test_blocks_and_inner_snakemakes_leave_what_they_leave_with_local(once: Both, case: Case) -> None:
    once.check(case)
