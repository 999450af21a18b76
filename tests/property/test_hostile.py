"""Forge reads any bytes of a job or a broken disk as a value or a named error, never another exception."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.backends.slurm.parse import (
    parse_config,
    parse_sacct,
    parse_squeue,
    parse_submission,
    parse_usage,
    refusal,
)
from snakemake_executor_plugin_forge.backends.slurm.states import parse_state
from snakemake_executor_plugin_forge.cli.main import main
from snakemake_executor_plugin_forge.record import sound
from snakemake_executor_plugin_forge.record.benchmark import Figures, improved
from snakemake_executor_plugin_forge.record.codec import encode, load_verdict, plain
from snakemake_executor_plugin_forge.record.index import remove_index
from snakemake_executor_plugin_forge.record.jsonfile import parse
from snakemake_executor_plugin_forge.sandbox.result import Result, as_line, read_result
from snakemake_executor_plugin_forge.software import catalog_file
from snakemake_executor_plugin_forge.spec.errors import UnfitError, UsageError
from snakemake_executor_plugin_forge.spec.printable import printable, shell_words
from snakemake_executor_plugin_forge.spec.verdict import Outcome, Usage, Verdict
from snakemake_executor_plugin_forge.staging import journal
from snakemake_executor_plugin_forge.staging.journal import Move
from snakemake_executor_plugin_forge.staging.owners import Owners
from snakemake_executor_plugin_forge.staging.pending import entries
from snakemake_executor_plugin_forge.staging.waiting import WaitingOutputs
from tests.mutations import FEW_OR_MANY, SEED, damaged
from tests.records import Made, write_run

pytestmark = pytest.mark.security

_RESULT = {
    "exit_code": 0, "signal": None, "error": "Error: é", "summary": "x", "children": [1024, 8, 8],
    "measured": [1024, 0.5, 8, 8, 4096],
}  # fmt: skip
_FIGURES = Figures(max_rss_bytes=200 * 2**20, cpu_seconds=3.0, io_read_bytes=0, io_write_bytes=2**20)
_BENCHMARK = b"s\th:m:s\tmax_rss\tio_in\tcpu_time\n2.0\t0:00:02\t10.00\tNA\t1.00\n"
_CATALOG = b"""version: 1
defaults: {runtime: py, memory: 4GiB, pids: 100, wall: 24h, network: on, env: {A: &v 1, B: *v}}
runtimes:
  py: &py {host: true, paths: {read: [data], write: [cache], hide: ["a\\tb"]}}
  other: {<<: *py, inherits: py, files: strict}
rules: {"map_*": py, "*": other}
protect: [/var/lib]
"""


@FEW_OR_MANY
def test_result_of_a_job(count: int) -> None:
    """The result is encoded, kept and shown later, so each part of it must allow that."""
    for data in damaged([as_line(_RESULT), as_line({"setup_error": "x"}), b"plain\n" + as_line({"signal": 9})], count):
        found = read_result(data)
        json.dumps(found, allow_nan=False).encode()
        assert "".join(filter(None, (found.error, found.summary, found.setup_error))).encode() is not None
        assert found.exit_code is None or abs(found.exit_code) < 2**31


def test_result_after_and_before_nonsense() -> None:
    line = as_line(_RESULT)
    wanted = read_result(line)
    assert wanted == Result(True, 0, None, "Error: é", "x", None, (1024, 8, 8), (1024, 0.5, 8, 8, 4096))
    for before in (b"x" * 5000, b"[" * 100_000 + b"\n", b'{"exit_code": 3}\n', b"\0", b'{"a": NaN}'):
        assert read_result(before + line) == wanted._replace(nonsense=True)
        assert read_result(line + before.replace(b"exit_code", b"code")) == wanted._replace(nonsense=True)


@pytest.mark.parametrize(("said", "code", "signal"), [
    ('{"exit_code": 1' + "0" * 30 + "}", 255, None), ('{"exit_code": "0"}', 255, None), ('{"exit_code": [0]}', 255, None),
    ('{"exit_code": NaN}', 255, None), ('{"exit_code": true}', 255, None), ('{"exit_code": 0, "signal": 900}', 0, None),
    ('{"exit_code": null, "signal": 15}', None, 15), ('{"exit_code": 3}', 3, None),
    ('{"exit_code": 255}', 255, None),
])  # fmt: skip
def test_end_of_a_job_is_never_unknown(said: str, code: int | None, signal: int | None) -> None:
    """A job whose recorded end is impossible has failed."""
    found = read_result(said.encode() + b"\n")
    assert (found.ended, found.exit_code, found.signal) == (True, code, signal)
    assert found.nonsense == (said not in ('{"exit_code": null, "signal": 15}', '{"exit_code": 3}', '{"exit_code": 255}'))


@FEW_OR_MANY
def test_benchmark_files(count: int) -> None:
    jsonl = b'{"s": 2.0, "max_rss": 1.5, "cpu_time": "NA", "wildcards": {"a": "b"}}\n'
    for data in damaged([_BENCHMARK, jsonl], count):
        text = data.decode("utf-8", "surrogateescape")
        for is_jsonl in (False, True):
            found = improved(text, _FIGURES, jsonl=is_jsonl)
            assert "inf" not in found.lower().replace("infinity", "") or "inf" in text.lower()
            found.encode("utf-8", "surrogateescape")


@FEW_OR_MANY
def test_catalogs(count: int) -> None:
    for data in damaged([_CATALOG], count // 3):
        try:
            catalog_file.parse(data.decode("utf-8", "replace"), "/work/forge.yaml")
        except UsageError as error:
            assert str(error).startswith("/work/forge.yaml, line "), data
            assert len(str(error)) < 3000 and str(error).isprintable(), data


_BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(("text", "said"), [
    (_BOMB, "line 6"), ("runtimes: &r\n  x: *r", "line 2"), ("runtimes: &r {x: {<<: *r}}", "a part of"), ("a: " + "[" * 10_000, "levels deep"),
    ("\n".join(" " * depth + "a:" for depth in range(500)), "line 5"), ("a: 1\nb: \0", "line 3"), ('protect: ["a\\0b"]', "character"),
    ('protect: ["\\ud800"]', "character"), ("runtimes:\n  a: {env: {X: 1,\n    X: 2}}", "line 4: runtimes.a.env.X: this key is there twice"),
    ("rules: !!python/object/apply:os.system [ls]", "line 2"), ("defaults: {pids: !!int x}", "no int"), ("a: !!bool x", "no bool"),
    ("a: !!timestamp x", "no timestamp"), ("a: 2024-13-45", "no timestamp"), ("? [a, b]\n: c", "line 2"), ("a: " + "9" * 5000, "no int"),
    ("defaults: {memory: " + "9" * 400 + "}", "line 2: defaults.memory"), ('"\\e]0;x\\a": 1', "\\x1b]0;x\\x07"),
    ("runtimes:\n" + "".join(f"  r{n}: {{inherits: r{n + 1}}}\n" for n in range(200)), "ancestors"),
])  # fmt: skip
def test_hostile_catalogs_are_named_with_their_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "forge.yaml"
    path.write_text(f"version: 1\n{text}\n")
    with pytest.raises(UsageError) as caught:
        catalog_file.load(str(path))
    assert str(caught.value).startswith(f"{path}, line ") and said in str(caught.value)


def test_a_catalog_is_a_small_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "forge.yaml"
    path.write_text("#" * (1 << 19))
    with pytest.raises(UsageError, match="larger than"):
        catalog_file.load(str(path))


@pytest.mark.parametrize("text", ["[" * 200_000, "[" * 500 + "]" * 500, '{"a":' * 100_000, "9" * 5000, "", "{"])
def test_json_is_bounded(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)
    assert parse('[NaN, Infinity, 1e999, -1e999, "\\ud800"]') == [None, None, None, None, "\ud800"]


_SLURM = Path(__file__).parents[1] / "unit" / "slurm_output"
_SACCT = b"12_[0-3]|12_[0-3]|COMPLETED|0:0|n1|forge-r.b1\n13|13|OUT_OF_MEMORY|0:125|n2|forge-r.b2\n"
_USAGE = b"13|60|1700000000|00:01.500|00:00.500|00:02|1234K|1.5M|0\n13.batch|60|1700000000|00:01|00:01|1-01:02:03|2G|0|0\n"


@FEW_OR_MANY
def test_text_of_slurm(count: int) -> None:
    """Answers of squeue, sacct, scontrol and sbatch, with job names and reasons of a user's making."""
    examples = [path.read_bytes() for path in sorted(_SLURM.iterdir())]
    for data in damaged([*examples, _SACCT, _USAGE, b"12;cluster\n", b"hello\n13\n"], count):
        text = data[:20_000].decode("utf-8", "replace")
        for row in [*parse_squeue(text), *parse_sacct(text)]:
            assert 0 <= row.index < 10**9
        facts = parse_config(text)
        assert facts is None or facts.max_array >= 1
        number = parse_submission(text)
        assert number is None or (number.isascii() and number.isdigit())
        refusal(text)
        for used in parse_usage(text).values():
            json.dumps([used.started, used.seconds, plain(used.usage)], allow_nan=False)
        for line in text.splitlines()[:3]:
            parse_state(line)


@FEW_OR_MANY
def test_verdicts_entries_and_journals(count: int, tmp_path: Path) -> None:
    """A file that can be read can be written again; any other is a named error, or counts as missing."""
    verdict = Verdict(Outcome.OOM, "out of memory", 3, None, Usage(), "2026-01-01T00:00:00+00:00", 1.0, notes=("x",), evidence={"a": 1})
    written = json.dumps(encode(verdict)).encode()
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/x").touch()
    moves = (Move.of(f"{tmp_path}/upper/x", f"{tmp_path}/x"),)
    WaitingOutputs(moves, moves, ("/a/b",), {f"{tmp_path}/x": None}, (str(tmp_path),), str(tmp_path)).save(str(tmp_path))
    staged = (tmp_path / "staged.json").read_bytes()
    identity = {"rule": "r", "wildcards": {}, "outputs": [], "logs": [], "recipe": "", "command": "", "runtime": "", "policy": "", "inputs": {}}
    entry = json.dumps({"run": "r", "name": "n", "pid": 5, "start_time": 1, "boot_id": "b", "host": "h", "cpus": 1, "memory_bytes": None,
                        "identity": identity}).encode()  # fmt: skip
    (tmp_path / "s/adoptable").mkdir(parents=True)
    (tmp_path / "s/adoptable/r.n").write_bytes(entry)
    assert len(entries(f"{tmp_path}/s")) == 1
    journal.write(str(tmp_path), journal.Journal(moves))
    journalled = (tmp_path / journal.JOURNAL).read_bytes()
    (tmp_path / journal.COPY_OF_JOURNAL).unlink()
    ledger = b'["/w/a", 12, 345]\n["out.txt", 1.5, 2.5]\n'
    for data in damaged([written, staged, entry, journalled, ledger], count // 2):
        for name in ("verdict.json", "staged.json", "s/adoptable/r.n", journal.JOURNAL, "s/made.jsonl", "s/windows.jsonl"):
            (tmp_path / name).write_bytes(data)
        found = load_verdict(f"{tmp_path}/verdict.json")
        if found is not None:
            json.dumps(sound.verdict(encode(found)), allow_nan=False)
        with suppress(UnfitError):
            WaitingOutputs.read(str(tmp_path)).is_begun()
        for one in entries(f"{tmp_path}/s"):
            assert one.directory == f"{tmp_path}/s/runs/{one.run}/{one.name}" and not one.supervised()
        try:
            read = journal.read(str(tmp_path))
        except journal.UndecidedError:
            read = None
        assert read is None or read.moves == moves
        owners = Owners(str(tmp_path), f"{tmp_path}/s", ("out.txt",))
        assert owners.is_made(str(tmp_path / "upper/x")) in (True, False)


@given(st.binary(max_size=200))
def test_names_are_shown_without_controls(name: bytes) -> None:
    text = name.decode("utf-8", "surrogateescape")
    assert printable(text).isprintable() and shell_words([text]).isprintable()


@FEW_OR_MANY
def test_a_damaged_index(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The index only repeats the records: a command that finds damage says so and removes it, and the next one answers."""
    write_run(tmp_path, [Made() for _ in range(40)])
    words = ["--directory", str(tmp_path)]
    assert main(["jobs", *words]) == 0
    wanted = capsys.readouterr().out
    index = next(tmp_path.rglob("index.db"))
    whole = index.read_bytes()
    print(f"FORGE_FUZZ_SEED={SEED}")
    rng = random.Random(SEED)
    damaged_ones = 0
    for _ in range(count // 10):
        remove_index(str(index.parent))
        data = bytearray(whole)
        for _ in range(rng.randint(1, 40)):
            data[rng.randrange(0 if rng.random() < 0.3 else len(data) // 2, len(data))] = rng.randrange(256)
        index.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
        for command in rng.sample(["jobs", "why", "advise", "audit", "metrics", "runs"], 3):
            code = main([command, *words])
            said = capsys.readouterr()
            assert code in (0, 1, 2) and (code != 2 or "It is removed: give the command again." in said.err), (command, said.err)
            damaged_ones += code == 2
        remove_index(str(index.parent))
        assert main(["jobs", *words]) == 0 and capsys.readouterr().out == wanted
    assert damaged_ones
