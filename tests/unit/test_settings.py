"""The flags: their choices are the enums', their defaults the configuration's."""

from __future__ import annotations

from dataclasses import fields

import pytest

from snakemake_executor_plugin_forge.config import to_config
from snakemake_executor_plugin_forge.model import (
    CheckFormats,
    Checksums,
    Config,
    CpuMode,
    FilePolicy,
    KeepScratch,
    Nested,
    Network,
    OnDisconnect,
    Require,
    Undeclared,
)
from snakemake_executor_plugin_forge.settings import ExecutorSettings

ENUMS = {
    "files": FilePolicy, "undeclared": Undeclared, "nested": Nested, "require": Require, "cpu": CpuMode, "network": Network, "keep_scratch": KeepScratch,
    "checksums": Checksums, "check_formats": CheckFormats, "on_disconnect": OnDisconnect,
}  # fmt: skip


def test_choices_are_those_of_the_enums() -> None:
    choices = {f.name: f.metadata["choices"] for f in fields(ExecutorSettings) if "choices" in f.metadata}
    assert choices == {name: [str(v) for v in kind] for name, kind in ENUMS.items()}


def test_defaults_agree() -> None:
    assert to_config(ExecutorSettings()) == Config()


@pytest.mark.parametrize("field", fields(ExecutorSettings), ids=lambda f: f.name)
def test_every_flag_has_help_and_a_variable(field: object) -> None:
    metadata = field.metadata  # type: ignore[attr-defined]
    assert len(metadata["help"]) > 20
    assert "%" not in metadata["help"]
    assert metadata["env_var"] is True
