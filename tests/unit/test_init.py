"""The first forge.yaml and profile: they are valid, and hold the values that Forge knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from snakemake_executor_plugin_forge.cli.init import RuleFacts, catalog_text, profile_text
from snakemake_executor_plugin_forge.software.catalog_file import parse
from snakemake_executor_plugin_forge.spec.host import POLLED, Host
from tests.conftest import forge, run, write_workflow

HOST = Host(8 << 30, 4, "cgroup-v2", "", "user", "", ())


def rule(name: str, *resources: str, conda: str | None = None, container: str | None = None, kind: str = "shell") -> RuleFacts:
    return RuleFacts(name, kind, frozenset(resources), conda, container)


@pytest.mark.parametrize("live", [True, False])
def test_the_catalog_is_valid_and_names_what_is_missing(tmp_path: Path, live: bool) -> None:
    files = [tmp_path / name / "tools.yaml" for name in ("envs", "other")]
    for file in files:
        file.parent.mkdir()
        file.write_text("dependencies: [samtools]\n")
    rules = [rule("all", kind=""), rule("map", "mem_mb", conda=str(files[0])), rule("call", "runtime", conda=str(files[1])),
             rule("plot", container="docker://x/host:1"), rule("9*", "mem_mb", "runtime")]
    text = catalog_text(rules, HOST, str(tmp_path), live=live)
    catalog = parse(text, f"{tmp_path}/forge.yaml")
    assert sorted(catalog.runtimes) == (["env-host", "host", "tools", "tools-2"] if live else ["host"])
    if live:
        assert yaml.safe_load(text)["rules"] == {"map": "tools", "call": "tools-2", "plot": "env-host"}
    assert "memory: 2048MiB" in text
    assert "which only the run limits: call, plot\n" in text
    assert "without runtime: map, plot\n" in text
    long = catalog_text([rule(f"a_rule_with_a_long_name_{n}") for n in range(50)], HOST, "/w", live=True)
    assert parse(long, "/w/forge.yaml")
    assert max(map(len, long.splitlines())) <= 110


def test_the_profile_asks_for_what_the_host_enforces() -> None:
    weak = Host(8 << 30, 4, POLLED, "no cgroup is writable", "none", "EPERM", ())
    for host, level in ((HOST, "full"), (weak, "none")):
        text = profile_text(host, "set-resources:\n  map: {mem_mb: 200}\n")
        assert yaml.safe_load(text) == {"executor": "forge", "cores": 4, "forge-require": level, "set-resources": {"map": {"mem_mb": 200}}}
    assert "no cgroup is writable" in text


def test_it_runs_at_once_and_overwrites_nothing(workdir: Path) -> None:
    write_workflow(workdir, """
        print("a Snakefile may print")
        rule all:
            input: "a.txt"
        rule a:
            output: "a.txt"
            run:
                open(output[0], "w").close()
    """)
    shown = forge(workdir, "init", "--dry-run", check=True).stdout
    assert "executor: forge" in shown
    assert not (workdir / "forge.yaml").exists()
    forge(workdir, "init", check=True)
    before = (workdir / "forge.yaml").read_bytes()
    assert before.decode() in shown
    done = run(workdir, "--profile", "profiles/default")
    assert done.code == 0, done.output
    again = forge(workdir, "init")
    assert again.returncode != 0
    assert "there already. Nothing was written" in again.stderr
    assert (workdir / "forge.yaml").read_bytes() == before
    (workdir / "Snakefile").write_text("rule a:\n    input: undefined\n")
    broken = forge(workdir, "init", "-n")
    assert broken.returncode != 0
    assert "Snakemake cannot read the Snakefile" in broken.stderr
    assert "undefined" in broken.stderr
    assert "Traceback" not in broken.stderr
