"""conda environments of the catalog and of Snakemake's own ``--sdm conda``; a stand-in replaces conda."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.software.health import verify
from snakemake_executor_plugin_forge.spec.catalog import RuntimeKind

from ..conda import stand_in
from ..conda.channel import environment_file, make_channel
from ..conftest import DEADLINE, FORGE, Result, residue, run, write_workflow

pytestmark = pytest.mark.busy  # it mostly waits for other programs to start

WORKFLOW = """
rule all:
    input: "tools.txt", "script.txt", "plain.txt", "hook.txt", "own.txt", "listed.txt"
rule cat_tools:
    output: "tools.txt"
    shell: "samtools --version | head -1 > {output}; command -v samtools bcf >> {output}; bcftools --version | head -1 >> {output}"
rule cat_script:
    output: "script.txt"
    script: "s.py"
rule cat_hook:
    output: "hook.txt"
    shell: "echo $FORGE_TEST_HOOK $FORGE_TEST_COUNT ${{R_LIBS-gone}} $LC_ALL $FORGE_TEST_SET > {output}"
rule plain:
    output: "plain.txt"
    shell: "echo ${{CONDA_PREFIX-none}} ${{FORGE_TEST_HOOK-none}} > {output}"
rule own:
    output: "own.txt"
    resources: forge_runtime="prefix"
    shell: "command -v samtools > {output}"
rule listed:
    output: "listed.txt"
    resources: forge_runtime="listed"
    shell: "command -v samtools > {output}"
"""

CATALOG = """
version: 1
runtimes:
  genomics: {conda: envs/genomics.yaml, env: {LC_ALL: C}}
  listed: {conda: envs/explicit.txt}
  prefix: {conda: there}
rules: {"cat_*": genomics}
"""

SCRIPT = """
import os, sys
with open(snakemake.output[0], "w") as f:
    print(sys.executable, os.environ["CONDA_PREFIX"], snakemake.rule, sys.version_info[:2], file=f)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a channel, and an environment that was not made by Forge."""
    directory = tmp_path_factory.mktemp("conda").resolve()
    channel = make_channel(directory / "channel")
    write_workflow(directory, WORKFLOW)
    (directory / "s.py").write_text(SCRIPT)
    (directory / "envs").mkdir()
    genomics = json.loads(environment_file(channel.removeprefix("file://"), "bcftools", "hooked", "python"))
    (directory / "envs" / "genomics.yaml").write_text(json.dumps(genomics | {"variables": {"FORGE_TEST_SET": "of the file"}}))
    (directory / "envs" / "explicit.txt").write_text(f"@EXPLICIT\n{channel}/linux-64/samtools-1.16-0.tar.bz2\n")
    (directory / "envs" / "there.yaml").write_text(environment_file(channel, "samtools"))
    stand_in._create(str(directory / "envs" / "there.yaml"), str(directory / "there"))
    (directory / "forge.yaml").write_text(CATALOG)
    return directory


@pytest.fixture(scope="module")
def done(place: Path) -> Result:
    env = {"R_LIBS": "/nowhere", "FORGE_TEST_HOOK_LOG": str(place / "hook.log")}
    return run(place, "-j4", "--forge-runtimes-dir", str(place / "store"), env=env)


def test_rules_find_the_tools_of_their_environment(done: Result) -> None:
    assert done.code == 0, done.output
    first, samtools, bcf, bcftools = done.read("tools.txt").splitlines()
    prefix = samtools.removesuffix("/bin/samtools")
    assert prefix.startswith(f"{done.directory}/store/conda-")
    assert (first.split()[0], bcftools.split()[0], bcf) == ("samtools", "bcftools", f"{prefix}/bin/bcf")
    assert done.read("own.txt") == f"{done.directory}/there/bin/samtools\n"
    assert done.read("plain.txt") == "none none\n"
    assert "/store/conda-" in done.read("listed.txt")
    assert residue(done.directory) == []


def test_a_script_is_run_by_the_interpreter_of_the_environment(done: Result) -> None:
    executable, prefix, *rest = done.read("script.txt").split(maxsplit=2)
    assert executable == f"{prefix}/bin/python"
    assert rest == ["cat_script (3, 11)\n"]


def test_hooks_run_once_and_their_effect_reaches_every_job(done: Result) -> None:
    words = done.read("hook.txt").split()
    assert words[:2] == ["active", "in"]
    assert words[3:] == ["1", "gone", "C", "of", "the", "file"]
    assert (done.directory / "hook.log").read_text() == "once more\n"


def test_a_lock_file_of_pixi_is_installed_as_it_says(place: Path, workdir: Path) -> None:
    """The lock file names hooked 1.0, although the channel has 2.0."""
    import rattler

    async def lock() -> None:
        platform = rattler.LockPlatform("linux-64")
        channel = f"file://{place}/channel"
        records = await rattler.solve([channel], ["hooked=1.0", "samtools"], platforms=["linux-64", "noarch"])
        file = rattler.LockFile([platform])
        file.set_channels("default", [rattler.LockChannel(channel)])
        for record in records:
            file.add_conda_package("default", platform, record)
        file.to_path(workdir / "pixi.lock")

    asyncio.run(lock())
    (workdir / "forge.yaml").write_text("version: 1\nruntimes: {locked: {conda: pixi.lock}}\n")
    built = _forge(workdir, "build", "locked", "--json", "--runtimes-dir", str(workdir / "store"))
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)[0]["packages"] == {"hooked": "1.0 0", "samtools": "1.16 0"}


def test_the_record_has_every_package(done: Result) -> None:
    directory = Path(done.attempt("cat_tools")["directory"])
    identity = json.loads((directory / "spec.json").read_text())["runtime_id"]
    described = json.loads((directory.parent / "run.json").read_text())["runtimes"][identity]
    assert described["packages"] == {"bcftools": "1.16 0", "hooked": "2.0 0", "python": "3.11.2 0", "samtools": "1.16 0"}


# -- Snakemake's own --sdm conda ---------------------------------------------------------------------------------------

OWN = """
rule all:
    input: "tools.txt", "script.txt", "named.txt", "plain.txt", expand("many/{n}.txt", n=range(6)), "bench.tsv", "wrapped.txt"
rule tools:
    output: "tools.txt"
    conda: "envs/tools.yaml"
    shell: "command -v samtools > {output}; samtools --version | head -1 >> {output}"
rule script:
    output: "script.txt"
    conda: "envs/tools.yaml"
    script: "s.py"
rule named:
    output: "named.txt"
    conda: "shared"
    shell: "command -v samtools > {output}; echo $CONDA_PREFIX >> {output}"
rule plain:
    output: "plain.txt"
    shell: "(command -v samtools; echo ${{CONDA_PREFIX-none}}) > {output}"
rule many:
    output: "many/{n}.txt"
    conda: "envs/tools.yaml"
    shell: "echo $FORGE_TEST_COUNT > {output}"
rule benched:
    output: "benched.txt"
    benchmark: "bench.tsv"
    conda: "envs/tools.yaml"
    shell: "command -v samtools > {output}"
rule wrapped:
    output: "wrapped.txt"
    wrapper: "file:wrappers/w"
"""


@pytest.fixture(scope="module", params=["forge", "local"])
def own(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Result, list[str]]:
    """One workflow under Forge and under the local executor, and the calls of conda."""
    directory = tmp_path_factory.mktemp("sdm").resolve()
    channel = make_channel(directory / "channel")
    write_workflow(directory, OWN)
    (directory / "s.py").write_text(SCRIPT)
    (directory / "envs").mkdir()
    (directory / "wrappers" / "w").mkdir(parents=True)
    (directory / "wrappers" / "w" / "wrapper.py").write_text(SCRIPT)
    for path in ("envs/tools.yaml", "wrappers/w/environment.yaml"):
        (directory / path).write_text(environment_file(channel, "samtools", "hooked", "python"))
        (directory / path).with_suffix(".post-deploy.sh").write_text("echo changed > $CONDA_PREFIX/share/hooked.txt; rm $CONDA_PREFIX/share/samtools/*\n")
    (directory / "forge.yaml").write_text("version: 1\ndefaults: {env: {OF_DEFAULTS: there}}\n")
    base = directory / "base"
    path = f"{stand_in.install(base)}{os.pathsep}{os.environ['PATH']}"
    stand_in._create(str(directory / "envs" / "tools.yaml"), str(base / "envs" / "shared"))
    log = directory / "conda.log"
    result = run(
        directory, "-j4", "--sdm", "conda", executor=request.param,
        env={"PATH": path, "FORGE_TEST_CONDA_LOG": str(log)},
    )
    assert result.code == 0, result.output
    return result, log.read_text().splitlines()


def test_conda_directives_mean_what_snakemake_says(own: tuple[Result, list[str]]) -> None:
    result, _ = own
    samtools, version = result.read("tools.txt").splitlines()
    assert "/.snakemake/conda/" in samtools
    assert version.startswith("samtools ")
    prefix = samtools.removesuffix("/bin/samtools")
    for name in ("script", "wrapped"):
        assert result.read(f"{name}.txt") == f"{prefix}/bin/python {prefix} {name} (3, 11)\n"
    base = result.directory / "base"
    assert result.read("named.txt") == f"{base}/envs/shared/bin/samtools\n{base}/envs/shared\n"
    assert result.read("plain.txt") == f"{shutil.which('samtools')}\nnone\n"
    assert result.read("many/3.txt") == "1\n"
    assert result.read("benched.txt") == f"{samtools}\n"


def test_conda_is_not_asked_for_every_job(own: tuple[Result, list[str]]) -> None:
    result, calls = own
    activations = [call for call in calls if call.startswith("activate")]
    if not (result.directory / ".snakemake" / "forge").exists():  # the local executor, for comparison
        assert len(activations) >= 11
        return
    assert len(activations) == 3, calls  # one for each environment, one for the post-deploy script
    assert calls.count("info --json") == 1
    assert residue(result.directory) == []
    attempt = result.attempt("tools")
    assert attempt["runtime"].startswith("conda:")
    assert json.loads(Path(attempt["directory"], "spec.json").read_text())["environment"]["OF_DEFAULTS"] == "there"
    assert attempt["runtime"].endswith("envs/tools.yaml")
    assert attempt["how"] == "launcher"
    # Another file with the same packages: one environment, activated once; the record names each rule's own file.
    assert result.attempt("wrapped")["runtime"].endswith("wrappers/w/environment.yaml")


def test_a_job_cannot_change_its_environment(done: Result, place: Path, workdir: Path) -> None:
    """The default file policy, guard, protects it even from root."""
    write_workflow(workdir, """
        rule cat_writes:
            output: "a.txt"
            shell: "(echo x > $CONDA_PREFIX/new; echo x >> $CONDA_PREFIX/bin/bcftools; rm $CONDA_PREFIX/bin/samtools) 2> {output} || true"
    """)
    (workdir / "forge.yaml").write_text((place / "forge.yaml").read_text().replace("envs/", f"{place}/envs/")
                                        .replace("conda: there", f"conda: {place}/there"))
    result = run(workdir, "-j1", "--forge-runtimes-dir", str(place / "store"))
    assert result.code == 0, result.output
    assert result.read("a.txt").count("Read-only file system") == 3
    prefix = next((place / "store").glob("conda-*/env/bin/bcftools")).parents[1]
    assert verify(str(prefix), RuntimeKind.CONDA, None, fully=True).problems == ()


# -- damage ------------------------------------------------------------------------------------------------------------


def _forge(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*FORGE, "runtimes", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=DEADLINE)


def test_damage_stops_the_run_before_the_first_job_and_the_named_command_mends_it(done: Result, place: Path) -> None:
    store = place / "store"
    damaged = next(p for p in store.glob("conda-*/env/bin/bcftools.real"))
    before = damaged.stat()
    with damaged.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    attempts = len(done.attempts())
    result = run(place, "-j2", "-f", "plain", "tools.txt", "--forge-runtimes-dir", str(store))
    assert result.code != 0
    assert f"Runtime genomics is damaged: {damaged} is not as it was installed" in result.output
    command = f"snakemake-forge runtimes check genomics --repair --runtimes-dir {store}"
    assert f"Repair it with: {command}" in result.output
    assert len(done.attempts()) == attempts  # not even a job that does not need the runtime
    found = _forge(place, "check", "genomics", "--runtimes-dir", str(store))
    assert found.returncode == 1
    assert str(damaged) in found.stdout
    assert f"Repair it with: {command}" in found.stdout
    mended = _forge(place, *command.split()[2:])
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert run(place, "-j2", "-f", "tools.txt", "--forge-runtimes-dir", str(store)).code == 0
    assert residue(place) == []


def test_check_runs_a_job_in_each_and_says_which_cannot(done: Result, place: Path, workdir: Path) -> None:
    whole = _forge(place, "check", "--json", "--runtimes-dir", str(place / "store"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    states = {r["runtime"]: r["state"] for r in json.loads(whole.stdout)["runtimes"]}
    assert states == {"host": "sound", "genomics": "sound", "listed": "sound", "prefix": "sound"}
    shutil.copytree(place / "there", workdir / "broken", symlinks=True)
    (workdir / "broken" / "bin" / "python").write_text("#!/nowhere/python\n")
    (workdir / "broken" / "bin" / "python").chmod(0o755)
    (workdir / "forge.yaml").write_text("version: 1\nruntimes:\n  b: {conda: broken}\n  c: {venv: r.txt}\n")
    (workdir / "r.txt").touch()
    found = _forge(workdir, "check", "--json", "--runtimes-dir", str(workdir / "store"))
    assert found.returncode == 1
    by_name = {r["runtime"]: r for r in json.loads(found.stdout)["runtimes"]}
    assert by_name["b"]["state"] == "damaged"
    assert "needs an interpreter that is not there: /nowhere/python" in by_name["b"]["problems"][-1]
    assert by_name["c"]["state"] == "missing"
    assert not list(workdir.glob(".forge-check-*"))
