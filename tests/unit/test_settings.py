"""The flags: their choices are the enums', their defaults the configuration's."""

from __future__ import annotations

from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_forge.plugin.config import to_config
from snakemake_executor_plugin_forge.plugin.settings import ExecutorSettings
from snakemake_executor_plugin_forge.spec.errors import UsageError
from snakemake_executor_plugin_forge.spec.job import (
    CheckFormats,
    Checksums,
    Config,
    CpuMode,
    DefaultResources,
    FilePolicy,
    KeepScratch,
    Nested,
    Network,
    OnDisconnect,
    Require,
    RunBlocks,
    Undeclared,
)

ENUMS = {
    "files": FilePolicy, "undeclared": Undeclared, "nested": Nested, "require": Require, "cpu": CpuMode, "network": Network, "keep_scratch": KeepScratch,
    "run_blocks": RunBlocks, "checksums": Checksums, "check_formats": CheckFormats, "on_disconnect": OnDisconnect, "default_resources": DefaultResources,
}  # fmt: skip


REFERENCE = (Path(__file__).parents[2] / "docs/reference/settings.md").read_text(encoding="utf-8")


def test_choices_are_those_of_the_enums() -> None:
    choices = {f.name: f.metadata["choices"] for f in fields(ExecutorSettings) if "choices" in f.metadata}
    assert choices == {name: [str(v) for v in kind] for name, kind in ENUMS.items()}


def test_defaults_agree() -> None:
    assert to_config(ExecutorSettings()) == Config()


@pytest.mark.parametrize("field", fields(ExecutorSettings), ids=lambda f: f.name)
def test_every_flag_has_help_a_variable_and_a_row_in_the_reference(field: Field[Any]) -> None:
    metadata = field.metadata
    assert len(metadata["help"]) > 20
    assert "%" not in metadata["help"]
    assert ("Default: " in metadata["help"]) == (field.name not in ("audit", "metrics_file"))  # these are off, or need a name
    assert metadata["env_var"] is True
    name = field.name.replace("_", "-")
    assert f"| `--forge-{name}` | `SNAKEMAKE_FORGE_{field.name.upper()}` |" in REFERENCE


@pytest.mark.parametrize(("field", "value", "words"), [
    ("io_weight", 0, "--forge-io-weight=0: must be between 1 and 10000"), ("pids", "0", "--forge-pids=0: must be between 1 and"),
    ("scratch_dir", Path("/nonexistent"), "--forge-scratch-dir=/nonexistent: there is no such directory"),
    ("grace", "soon", "--forge-grace=soon: not a time"), ("run_memory", "150%", "--forge-run-memory=150%.*between 1% and 100%")])
def test_values_that_cannot_be_are_refused(field: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        to_config(replace(ExecutorSettings(), **{field: value}))
