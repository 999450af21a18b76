"""Files in the working directory, a user's or a job's, do not steer any process of Forge outside the sandbox."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import DEADLINE, Result, forge, residue, run, write_workflow

pytestmark = [pytest.mark.slow, pytest.mark.security]

# -P: as with the scripts snakemake and snakemake-forge, the working directory is not on the import path.
SNAKEMAKE = [sys.executable, "-P", "-m", "snakemake", "--scheduler", "greedy", "-j2"]
FORGE = [sys.executable, "-P", "-m", "snakemake_executor_plugin_forge.cli.main"]


def call(directory: Path, *words: str, env: dict[str, str] | None = None) -> Result:
    done = subprocess.run(words, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          text=True, errors="replace", check=False, timeout=DEADLINE, env=os.environ | (env or {}))
    return Result(done.returncode, done.stdout, directory)


# Snakemake itself imports graphlib when it reads the Snakefile. With the others local's inner Snakemake does not start.
MODULES = sorted({*(name for name in sys.stdlib_module_names if not name.startswith("_") and importlib.util.find_spec(name)), "rich", "pydantic", "rocrate", "yaml", "argcomplete",
                  "sitecustomize", "usercustomize"} - {"graphlib", "encodings", "codecs", "io", "abc", "os", "site", "antigravity"})
OWN = """
import os
import shutil
with open(os.environ["HITS"], "a") as file:
    print(__name__, os.getpid(), open("/proc/self/comm").read().strip(), file=file)
raise ImportError("this is not the module that you want")
"""
WORKFLOW = """
import sys
for name in ("pandas", "numpy", "polars"):  # Snakemake imports them for a script, if they are there; they meet gzip.py here, as with local
    sys.modules[name] = None
import helper, gzip_of_mine
rule all:
    input: "shell.txt", "script.txt", "run.txt"
rule by_shell:
    output: "shell.txt"
    shell: "echo {helper.WORD} > {output}"
rule by_script:
    input: "shell.txt"
    output: "script.txt"
    script: "scripts/write.py"
rule by_run:
    output: "run.txt"
    run:
        import helper, later, queue
        open(output[0], "w").write(f"{helper.WORD} {later.WORD} {queue.__name__}")
"""


def test_modules_of_the_user_in_the_working_directory_break_nothing(tmp_path: Path) -> None:
    directory, hits = tmp_path / "work", tmp_path / "hits"
    write_workflow(directory, WORKFLOW)
    for name in MODULES:
        (directory / f"{name}.py").write_text(OWN)
    for name in ("helper", "later", "gzip_of_mine"):
        (directory / f"{name}.py").write_text(f"WORD = {name!r}\n")
    (directory / "scripts").mkdir()
    (directory / "scripts" / "write.py").write_text("import json\nopen(snakemake.output[0], 'w').write(json.dumps(1))\n")
    (directory / "forge.yaml").write_text(f"version: 1\nprovenance: {tmp_path}/crates\n")
    env = {"HITS": str(hits), "PYTHONSTARTUP": str(directory / "typing.py"), "XDG_STATE_HOME": str(tmp_path / "state")}
    result = call(directory, *SNAKEMAKE, "--executor", "forge", env=env)
    assert result.code == 0 and not hits.exists(), result.output
    assert result.read("run.txt") == "helper later queue" and result.read("shell.txt") == "helper\n" and result.read("script.txt") == "1"
    assert list((tmp_path / "crates").glob("*/ro-crate-metadata.json")), result.output
    for words in (("why", "by_run"), ("gc", "--dry-run"), ("resume", "--dry-run")):
        said = call(directory, *FORGE, *words, env=env)
        assert said.code in (0, 1) and "Traceback" not in said.output and not hits.exists(), (words, said.output)
    assert not residue(directory)


def test_modules_of_the_user_work_as_with_local(tmp_path: Path) -> None:
    """A user's module is imported even if Forge has already imported one of the same name."""
    text = """
        import sys
        sys.path.insert(0, "lib")
        import gzip, difflib
        rule all:
            input: "a.txt", "b.txt"
        rule a:
            output: "a.txt"
            params: word=lambda wildcards: __import__("statistics").WORD
            shell: "echo {gzip.WORD} {difflib.WORD} {params.word} > {output}"
        rule b:
            output: "b.txt"
            run:
                import gzip, statistics, tty
                open(output[0], "w").write(f"{gzip.WORD} {statistics.WORD} {tty.WORD}\\n")
        """
    for executor in ("local", "forge"):
        directory = tmp_path / executor
        write_workflow(directory, text)
        (directory / "lib").mkdir()
        for name in ("gzip", "difflib", "statistics", "tty"):
            (directory / "lib" / f"{name}.py").write_text(f"WORD = 'mine-{name}'\n")
        result = call(directory, *SNAKEMAKE, "--executor", executor)
        assert result.code == 0, result.output
        assert result.read("a.txt") == "mine-gzip mine-difflib mine-statistics\n"
        assert result.read("b.txt") == "mine-gzip mine-statistics mine-tty\n"


def test_what_snakemake_would_import_of_a_jobs_files_is_named(tmp_path: Path) -> None:
    write_workflow(tmp_path, """
        try:
            import mine
        except ImportError:
            pass
        rule all:
            input: "a.txt"
        rule a:
            output: "a.txt"
            shell: "echo X=1 | tee statistics.py mine.py unused.py; mkdir -p queue; echo > queue/__init__.py; echo hi > {output}"
        """)
    first = call(tmp_path, *SNAKEMAKE, "--executor", "forge")
    assert first.code == 0 and "would import" not in first.output, first.output
    again = call(tmp_path, *SNAKEMAKE, "--executor", "forge", "--forceall")
    assert again.code == 0, again.output
    lines = [line for line in again.output.splitlines() if "Snakemake has imported" in line or "Snakemake would import" in line]
    assert [line.split(", which")[0].split("/")[-1] for line in lines] == [
        "mine.py", "__init__.py instead of the installed module queue", "statistics.py instead of the installed module statistics"]
    assert all("a job of rule a" in line for line in lines) and 'output: "queue/__init__.py"' in lines[1]


def test_files_that_steer_programs_have_to_be_declared(tmp_path: Path) -> None:
    """A job fails if it leaves such files undeclared; whole clones, environments and inner workflows are kept."""
    work = tmp_path / "work"
    (work / "upstream").mkdir(parents=True)
    git = "git -c user.name=x -c user.email=x@x -c init.defaultBranch=main"
    subprocess.run(f"cd upstream && {git} init -q && echo x=1 > .envrc && echo data > data && {git} add . && {git} commit -qm one",
                   shell=True, cwd=work, check=True)
    subprocess.run(["git", "init", "-q", "--bare", "bare.git"], cwd=work, check=True)
    write_workflow(work, f"""
        BAD = {{"a": ".envrc", "b": ".git/hooks/post-checkout", "c": "forge.yaml", "d": "profiles/default/config.yaml", "e": "results/.Rprofile", "f": "snakefile"}}
        rule all:
            input: expand("{{x}}.bad", x=BAD), "declared.txt", "clone.txt", "used.txt", "armed.txt", "hooked.txt", "logged.txt", "unlogged.txt", "venv.txt", "inner.txt", "sub/done.txt", "imported.txt"
        for x, path in BAD.items():
            rule:
                name: f"bad{{x}}"
                output: f"{{x}}.bad"
                params: path=path
                shell: "mkdir -p $(dirname {{params.path}}); echo X > {{params.path}}; echo > {{output}}"
        rule declared:
            output: ".condarc", touch("declared.txt")
            shell: "echo X > .condarc"
        rule clone:
            output: touch("clone.txt")
            shell: "git clone -q upstream tool"
        rule used:
            input: "clone.txt"
            output: touch("used.txt")
            shell: "cd tool && echo more > new && git add new && {git} commit -qm two && git fetch -q && git config user.name me && git init -q && {git} commit -q --amend -m x"
        rule armed:
            input: "used.txt"
            output: touch("armed.txt")
            shell: "git config -f tool/.git/config core.fsmonitor 'touch owned; false'"
        rule hooked:
            output: touch("hooked.txt")
            shell: "echo X > bare.git/hooks/post-receive"
        rule logged:
            output: touch("logged.txt")
            log: "logs/one"
            shell: "mkdir -p {{log}}/.snakemake/forge; echo X > {{log}}/.snakemake/forge/origin; cp /bin/true {{log}}/suid; chmod 4755 {{log}}/suid"
        rule unlogged:
            output: touch("unlogged.txt")
            log: "logs/two"
            shell: "mkdir -p {{log}}; cp /bin/true {{log}}/suid; chmod 4755 {{log}}/suid; exit 1"
        rule venv:
            output: touch("venv.txt")
            shell: "mkdir -p env/bin env/lib/site-packages/p/__pycache__; ln -s {sys.executable} env/bin/python; echo home=/ > env/pyvenv.cfg; echo /x > env/lib/site-packages/x.pth"
        rule inner:
            output: touch("inner.txt")
            shell: "mkdir -p inner; printf 'rule a:\\\\n    output: \\"a.txt\\"\\\\n    shell: \\"echo a > a.txt\\"\\\\n' > inner/Snakefile; {sys.executable} -P -m snakemake -q all -c1 -d inner -s inner/Snakefile"
        rule whole:
            output: directory("sub"), "sub/done.txt"
            shell: "mkdir -p sub/deep/.snakemake/forge/runs/x; echo X > sub/deep/.snakemake/forge/runs/x/run.json; echo d > sub/done.txt; mkdir -p beside/.snakemake; echo > beside/.snakemake/x; echo > beside/y"
        rule imported:
            output: "imported.txt"
            shell: "env -u PYTHONDONTWRITEBYTECODE {sys.executable} -c 'import sys; sys.path.insert(0, \\"lib\\"); import mine; print(mine.X)' > {{output}}"
        """)
    (work / "lib").mkdir()
    (work / "lib" / "mine.py").write_text("X = 1\n")
    result = call(work, *SNAKEMAKE, "--executor", "forge", "--keep-going")
    found = {a["rule"]: a for a in result.attempts()}
    assert {name: a["outcome"] for name, a in found.items()} == {
        **{f"bad{x}": "violation" for x in "abcdef"}, "armed": "violation", "hooked": "violation", "unlogged": "failed",
        **dict.fromkeys(("declared", "clone", "used", "logged", "venv", "inner", "whole", "imported"), "succeeded")}, result.output
    for x, path in {"a": ".envrc", "b": ".git/hooks/post-checkout", "c": "forge.yaml", "d": "profiles/default/config.yaml", "e": "results/.Rprofile",
                    "f": "snakefile"}.items():
        assert path in found[f"bad{x}"]["reason"] and f'add to it: output: "{path}"' in found[f"bad{x}"]["reason"], found[f"bad{x}"]["reason"]
        assert not (work / path).exists() and not (work / f"{x}.bad").exists()
    assert "tool/.git/config" in found["armed"]["reason"] and "bare.git/hooks/post-receive" in found["hooked"]["reason"]
    assert "fsmonitor" not in (work / "tool/.git/config").read_text() and not (work / "bare.git/hooks/post-receive").exists()
    assert os.listdir(work / "logs/one") == ["suid"] and (work / "logs/one/suid").stat().st_mode & 0o7777 == 0o755
    assert not (work / "logs/two").is_dir() and any("logs/two is a directory" in note for note in found["unlogged"]["notes"])
    for path in (".condarc", "tool/.git/config", "tool/.envrc", "env/pyvenv.cfg", "env/lib/site-packages/x.pth", "inner/Snakefile", "inner/a.txt",
                 "sub/done.txt", "beside/y", "imported.txt"):
        assert (work / path).exists(), path
    assert [str(p.relative_to(work)) for p in work.rglob(".snakemake")] == [".snakemake"]
    assert not (work / "lib" / "__pycache__" / "mine.cpython-311.pyc").exists() and not list((work / "lib").glob("__pycache__/*"))
    assert any("sub/deep/.snakemake" in note for note in found["whole"]["notes"]) and any("beside/.snakemake" in note for note in found["whole"]["notes"])
    assert not residue(work)


def test_records_that_a_job_has_forged_are_ignored(tmp_path: Path) -> None:
    """Forge ignores a .snakemake that an archive or an older job has left below a working directory."""
    work, sub, victim = tmp_path / "work", tmp_path / "work" / "sub", tmp_path / "victim"
    env = {"XDG_STATE_HOME": str(tmp_path / "state")}
    text = "rule a:\n    output: 'a.txt'\n    shell: 'echo a > a.txt'\n"
    for directory in (work, sub):
        write_workflow(directory, text)
    assert run(work, "-j2", env=env).code == 0
    source = work / ".snakemake" / "forge"
    forged = sub / ".snakemake" / "forge"
    shutil.copytree(source, forged, symlinks=True)  # with its origin file, which a job can read
    (run_json,) = forged.glob("runs/*/run.json")
    record = json.loads(run_json.read_text()) | {"workdir": str(sub)}
    record["restart"] = {"python": sys.executable, "arguments": ["-c", f"open({str(victim)!r}, 'w')"], "directory": str(sub)}
    run_json.write_text(json.dumps(record))
    staging = forged / "staging" / f"forge-{run_json.parent.name}-99999999-0"
    staging.mkdir(parents=True)
    (staging / "file").write_text("forged\n")
    (staging / "journal.json").write_text(json.dumps({"moves": [[str(staging / "file"), str(victim), (staging / "file").stat().st_ino]], "lock": "", "noted": False}))
    (forged / "home").mkdir(exist_ok=True)
    for words in (("resume",), ("resume", "--dry-run"), ("gc",), ("why", "a"), ("verify",), ("jobs",)):
        ignored = forge(sub, *words, env=env)
        assert ignored.returncode == 2 and "is ignored: Forge has not made it" in ignored.stdout + ignored.stderr, (words, ignored)
    assert not victim.exists() and staging.exists()
    said = run(sub, "-j2", env=env)
    assert said.code == 0 and "were not made by Forge" in said.output, said.output
    assert not victim.exists() and (sub / ".snakemake" / "forge.not-made-here-1" / "runs").is_dir()
    assert len(said.attempts()) == 1
    again = run(sub, "-j2", "--forceall", env=env)
    assert again.code == 0 and "were not made by Forge" not in again.output, again.output
    shutil.move(sub, tmp_path / "work" / "moved")  # moved by the user: it stays valid
    for place in (work, work / "moved"):
        forge(place, "why", "a", env=env, check=True)
