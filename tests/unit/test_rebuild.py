"""The options of an earlier command line, without its targets: as Snakemake itself reads them."""

from __future__ import annotations

import pytest

from snakemake_executor_plugin_forge.cli.rebuild import options_of, rebuild_command, usable_options

PLAIN = ["--executor", "forge", "-j2"]


@pytest.mark.parametrize(("arguments", "options"), [
    (PLAIN, PLAIN),
    ([*PLAIN, "all"], PLAIN),
    (["a.txt", *PLAIN, "b c.txt"], None),  # Snakemake takes targets in one place only
    (["a.txt", "b c.txt", *PLAIN], PLAIN),
    ([*PLAIN, "--config", "x=1", "--", "x=1", "-odd"], [*PLAIN, "--config", "x=1"]),
    (["--snakefile", "all", *PLAIN, "all"], ["--snakefile", "all", *PLAIN]),
    ([*PLAIN, "--force", "a.txt"], None),
    ([*PLAIN, "-R", "call"], None),
    ([*PLAIN, "--until", "call"], None),
    ([*PLAIN, "--no-such-option"], None),
    ([], None),
])
def test_targets_are_told_from_options(arguments: list[str], options: list[str] | None) -> None:
    assert options_of(arguments) == options


def test_the_newest_plain_run_gives_the_options() -> None:
    commands = [["snakemake", *PLAIN, "--force", "x"], ["snakemake", "--executor", "forge", "-j7"], ["snakemake", *PLAIN]]
    assert rebuild_command(usable_options(commands), ["a b"]) == [
        "snakemake", "--executor", "forge", "-j7", "--force", "--", "a b"]
    assert usable_options([]) == ["--executor", "forge", "--cores", "1"]
