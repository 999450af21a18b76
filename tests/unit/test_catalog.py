"""``forge.yaml``: its meaning, and the messages about its errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.software.catalog_file import find, load, parse, schema
from snakemake_executor_plugin_forge.spec.catalog import (
    Allowance,
    Catalog,
    Paths,
    Runtime,
    RuntimeKind,
    choose,
    for_runtime,
    with_defaults,
)
from snakemake_executor_plugin_forge.spec.errors import UsageError
from snakemake_executor_plugin_forge.spec.job import Config, FilePolicy, Network

DOCS = Path(__file__).parents[2] / "docs" / "reference"

EXAMPLE = """
version: 1
defaults: {runtime: py, memory: 4GiB, pids: 100, wall: 24h, network: on}
runtimes:
  py: {venv: requirements.txt, python: python3}
  genomics:
    conda: env.yaml
    network: off
    memory: 8GiB
    env: {LC_ALL: C.UTF-8, THREADS: 2}
    paths: {read: [data, /data/reference], write: [cache]}
  callers: {container: "oci-archive:images/callers.tar", inherits: genomics, files: strict, paths: {hide: [/secret]}}
  small: {inherits: py, memory: 100MB, disk: 1GB}
rules: {"map_*": genomics, "*": small}
protect: [/var/lib/postgresql]
provenance: crates
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "env.yaml").write_text("dependencies: []\n")
    return tmp_path


def _load(place: Path, text: str) -> Catalog:
    (place / "forge.yaml").write_text(text)
    return load(str(place / "forge.yaml"))


def test_the_example_of_the_design_means_what_it_says(place: Path) -> None:
    catalog = _load(place, EXAMPLE)
    assert catalog.default == "py"
    assert catalog.allowance == Allowance(4 * 1024**3, 100, 86400.0, None)
    assert catalog.network is Network.ON  # YAML reads "on" as True
    assert catalog.runtimes["host"] == Runtime("host")
    for name, full in (("u:1", "docker.io/library/u:1"), ("a/u", "docker.io/a/u"), ("q.io/a/u@sha256:0", "q.io/a/u@sha256:0")):
        image = _load(place, f"version: 1\nruntimes: {{a: {{container: 'docker://{name}'}}}}").runtimes["a"]
        assert image.source == full
    by_path = _load(place, "version: 1\nruntimes: {a: {venv: requirements.txt, python: bin/py}}").runtimes["a"]
    assert by_path.python == f"{place}/bin/py"
    assert catalog.runtimes["py"] == Runtime("py", RuntimeKind.VENV, f"{place}/requirements.txt", "python3")
    genomics = catalog.runtimes["genomics"]
    assert (genomics.kind, genomics.source, genomics.network) == (RuntimeKind.CONDA, f"{place}/env.yaml", Network.OFF)
    assert genomics.env == {"LC_ALL": "C.UTF-8", "THREADS": "2"}
    assert genomics.paths == Paths((f"{place}/data", "/data/reference"), (f"{place}/cache",))
    callers = catalog.runtimes["callers"]
    assert (callers.kind, callers.source) == (RuntimeKind.CONTAINER, f"oci-archive:{place}/images/callers.tar")
    assert (callers.allowance.memory_bytes, callers.network, callers.files) == (8 * 1024**3, Network.OFF, FilePolicy.STRICT)
    assert callers.env == genomics.env
    assert callers.paths == replace(genomics.paths, hide=("/secret",))
    small = catalog.runtimes["small"]
    assert (small.kind, small.python, small.allowance) == (RuntimeKind.VENV, "python3", Allowance(100_000_000, disk_bytes=10**9))
    assert catalog.protect == ("/var/lib/postgresql",)
    assert catalog.provenance == f"{place}/crates"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("version: 2\n", 1, ["version", "2", "1"]),
        ("defaults: {}\n", 1, ["version", "is missing"]),
        ("- a\n", 1, ["mapping that begins with version: 1"]),
        ("version: 1\nruntimes: [\n", 3, ["this is no YAML"]),
        ("version: 1\n? [a]\n: b\n", 2, ["this is no YAML"]),
        ("version: 1\nx: 2001-99-99\n", 2, ["this is no YAML"]),
        ("version: 1\nrutimes: {}\n", 2, ["rutimes", "Did you mean runtimes?"]),
        ("version: 1\nruntimes:\n  a:\n    memroy: 1GB\n", 4, ["runtimes.a.memroy", "Did you mean memory?"]),
        ("version: 1\nruntimes:\n  a:\n    memory: lots\n", 4, ["runtimes.a.memory: 'lots'", "not a size"]),
        ("version: 1\ndefaults:\n  wall: -3h\n", 3, ["defaults.wall", "not a time"]),
        ("version: 1\ndefaults:\n  pids: 0\n", 3, ["defaults.pids", "0"]),
        ("version: 1\ndefaults:\n  network: of\n", 3, ["defaults.network: 'of' is not one of on, off"]),
        ("version: 1\ndefaults:\n  files: gaurd\n", 3, ["'gaurd'", "Did you mean guard?"]),
        ("version: 1\ndefaults:\n  runtime: b\n", 3, ["'b' is no runtime of this catalog", "host"]),
        ("version: 1\nruntimes:\n  genomics: {}\nrules:\n  x: genomic\n", 5, ["rules.x", "Did you mean genomics?"]),
        ("version: 1\nruntimes:\n  a: {inherits: b}\n  b: {inherits: a}\n", 4, ["round in a circle"]),
        ("version: 1\nruntimes:\n  a:\n    inherits: hots\n", 4, ["Did you mean host?"]),
        ("version: 1\nruntimes:\n  a: {}\n  a: {}\n", 4, ["runtimes.a", "there twice"]),
        ("version: 1\nruntimes:\n  a:\n    conda: e\n    container: img\n", 4, ["conda inside a container is refused"]),
        ("version: 1\nruntimes:\n  a: {host: true, container: img}\n", 3, ["one of host, venv, conda, container"]),
        ("version: 1\nruntimes:\n  a:\n    venv: no.txt\n", 4, ["'no.txt': there is no", "/no.txt"]),
        ("version: 1\nruntimes:\n  a:\n    python: x\n", 4, ["only a runtime with venv:"]),
        ("version: 1\nruntimes:\n  a:\n    env: {TMPDIR: /x}\n", 4, ["TMPDIR is set by Forge"]),
        ("version: 1\nruntimes:\n  a:\n    env: {A: on}\n", 4, ["value of A must be text; put it in quotes"]),
        ("version: 1\nruntimes:\n  a:\n    paths: {raed: []}\n", 4, ["runtimes.a.paths.raed", "Did you mean read?"]),
        ("version: 1\nruntimes:\n  7z: {}\n", 3, ["a name begins with a letter"]),
    ],
    ids=lambda value: str(value)[-30:],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_line_key_and_near_miss(place: Path, text: str, line: int, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        _load(place, text)
    message = str(caught.value)
    assert message.startswith(f"{place}/forge.yaml, line {line}: ")
    for word in words:
        assert word in message


@given(st.text(max_size=200))
def test_any_text_is_a_catalog_or_an_error_with_a_line(text: str) -> None:
    try:
        parse("version: 1\n" + text, "f.yaml")
    except UsageError as error:
        assert str(error).startswith("f.yaml, line ")


def test_a_rules_runtime_is_the_resource_then_the_pattern_then_its_own_then_the_default(place: Path) -> None:
    catalog = replace(_load(place, EXAMPLE), rules=(("map_*", "genomics"), ("map_x", "small")))

    def name(rule: str, resources: dict[str, object], *, conda: bool = False) -> str | None:
        runtime = choose(rule, resources, catalog, uses_conda=conda)
        return runtime.name if runtime else None

    assert name("map_x", {"forge_runtime": "small"}) == "small"
    assert name("map_x", {}) == "genomics"
    assert name("map_x", {}, conda=True) == "genomics"
    assert name("other", {}, conda=True) is None
    assert name("other", {}) == "py"
    assert name("other", {"forge_runtime": "<TBD>"}) == "py"
    assert choose("a", {}, Catalog()) == Runtime("host")


def test_unknown_runtimes_and_nested_environments_are_refused(place: Path) -> None:
    catalog = _load(place, EXAMPLE)
    with pytest.raises(UsageError, match=r"Rule a: forge_runtime='genomic' .*Did you mean genomics\?"):
        choose("a", {"forge_runtime": "genomic"}, catalog)
    with pytest.raises(UsageError, match=r"there is no forge\.yaml"):
        choose("a", {"forge_runtime": "genomic"}, Catalog())
    with pytest.raises(UsageError, match=r"has conda: of its own and gets the runtime callers \(container\)"):
        choose("a", {"forge_runtime": "callers"}, catalog, uses_conda=True)
    with pytest.raises(UsageError, match=r"has container: of its own and gets the runtime genomics \(conda\)"):
        choose("map_1", {}, catalog, uses_container=True)


def test_limits_come_from_the_runtime_then_a_flag_then_the_defaults(place: Path) -> None:
    catalog = _load(place, EXAMPLE)
    plain = with_defaults(Config(), catalog)
    assert (plain.memory_bytes, plain.pids, plain.wall_seconds) == (4 * 1024**3, 100, 86400.0)
    flagged = with_defaults(Config(memory_bytes=5, pids=7, network=Network.OFF), catalog)
    assert (flagged.memory_bytes, flagged.pids, flagged.network) == (5, 7, Network.OFF)
    small = for_runtime(flagged, catalog.runtimes["small"])
    assert (small.memory_bytes, small.pids, small.disk_bytes) == (100_000_000, 7, 10**9)
    small_s, defaults = "{} of runtime small in forge.yaml", "{} under defaults: of forge.yaml"
    assert small.limits_from == {"mem_mb": small_s.format("memory"), "pids": "--forge-pids",
                                 "runtime": defaults.format("wall"), "disk_mb": small_s.format("disk")}  # fmt: skip
    assert for_runtime(plain, catalog.runtimes["genomics"]).network is Network.OFF
    assert with_defaults(Config(), Catalog()) == Config()


def test_the_catalog_is_the_one_asked_for_or_the_one_that_is_there(place: Path) -> None:
    assert find(None, str(place)) is None
    _load(place, "version: 1\n")
    assert find(None, str(place)) == f"{place}/forge.yaml"
    with pytest.raises(UsageError, match=r"--forge-config=nowhere\.yaml: there is no such file"):
        find("nowhere.yaml", str(place))


def test_the_published_schema_is_that_of_the_code() -> None:
    published = (DOCS / "forge.schema.json").read_text()
    assert json.loads(published) == json.loads(schema()), "run: make schema"
