"""``--sdm env-modules``: Snakemake's own code, inside the sandbox, with Debian's environment-modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import residue, run, write_workflow

INIT = Path("/usr/share/modules/init/bash")

WORKFLOW = """
rule all:
    input: "loaded.txt", "plain.txt"
rule loaded:
    output: "loaded.txt"
    envmodules: "forge/1.0"
    shell: "echo $FORGE_TEST_MODULE > {output}"
rule plain:
    output: "plain.txt"
    shell: "echo ${{FORGE_TEST_MODULE-none}} > {output}"
"""


@pytest.mark.skipif(not INIT.exists(), reason="apt-get install environment-modules")
@pytest.mark.parametrize("executor", ["forge", "local"])
def test_modules_are_loaded_for_the_rules_that_name_them(workdir: Path, executor: str) -> None:
    write_workflow(workdir, WORKFLOW)
    (workdir / "modules" / "forge").mkdir(parents=True)
    (workdir / "modules" / "forge" / "1.0").write_text("#%Module1.0\nsetenv FORGE_TEST_MODULE loaded\n")
    env = {"BASH_ENV": str(INIT), "MODULEPATH": str(workdir / "modules")}
    result = run(workdir, "-j2", "--sdm", "env-modules", executor=executor, env=env)
    assert result.code == 0, result.output
    assert result.read("loaded.txt") == "loaded\n"
    assert result.read("plain.txt") == "none\n"
    assert residue(workdir) == []
