"""Names and messages of any bytes: no command, message or page gives a terminal an order or a Snakefile a line."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import select
import tempfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.analysis.explain import Told, explain, summary_after_failure
from snakemake_executor_plugin_forge.analysis.notes import Notes
from snakemake_executor_plugin_forge.cli.main import main
from snakemake_executor_plugin_forge.plugin.executor import _message
from snakemake_executor_plugin_forge.record.codec import encode
from snakemake_executor_plugin_forge.record.streams import Stream
from snakemake_executor_plugin_forge.spec.outcome import judge
from snakemake_executor_plugin_forge.spec.printable import (
    json_text,
    printable,
    python_string,
    shell_words,
    terminal_bytes,
    terminal_text,
    without_escapes,
)
from snakemake_executor_plugin_forge.spec.verdict import (
    Evidence,
    Excess,
    Harm,
    HarmKind,
    Oom,
    OomScope,
    Refusal,
    RefusalKind,
    Usage,
    Verdict,
    Writer,
    WritesTo,
)

from ..conftest import DEADLINE
from ..records import Made, write_run
from .specs import spec

HOSTILE = (
    "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x1b]52;c;Zm9v\x1b\\", "\udc9b31m", "\x9b2J", "\u202egnp.exe", "a\rb", "a\nrule x:\n",
    '"', "'", '", "x', "\\", "\x07", "\x1b", "\x1bP1\x1b\\", "\u2028", "\x7f", "\ud800", "{x}", "<script>alert(1)</script>", "$(id)",
    "\x1bc", "\x1b(0", "\x85", "\u200b", "\U000e0001",
)  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(HOSTILE), st.binary(max_size=8).map(os.fsdecode), st.text(max_size=8)), max_size=4).map("".join)
names = texts.map(lambda text: text.replace("\0", "").encode("utf-8", "replace" if "\ud800" in text else "surrogateescape").decode("utf-8", "surrogateescape") or "x")
COLOUR = re.compile(r"\x1b\[[0-9;:]*m|\x1b\[[0-2]?K")


def harmless(text: str, keep: str = "\n\t") -> bool:
    """Whether a text holds no order to a terminal but colours."""
    return all(char.isprintable() or char in keep for char in COLOUR.sub("", text))


@given(texts)
def test_each_escape_says_what_was_there(text: str) -> None:
    assert printable(text).isprintable()
    literal = python_string(text)
    assert literal.isprintable()
    assert "\n" not in literal
    assert ast.literal_eval(literal) == text
    if text.isascii():
        assert yaml.safe_load(literal) == text
    if "\ud800" not in text:  # no file name has one, and two halves are one character of JSON
        assert json.loads(json_text(json.dumps(text, ensure_ascii=False))) == text
    assert json_text(json.dumps(text, ensure_ascii=False)).isprintable()
    assert harmless(without_escapes(text).replace("\x85", ""), "\n\t") or not text.isascii()


@given(st.lists(names, min_size=1))
def test_words_to_paste_are_words(words: list[str]) -> None:
    line = shell_words(words)
    assert line.isprintable()


@given(st.lists(st.one_of(st.binary(max_size=12), st.sampled_from([text.encode("utf-8", "replace") for text in HOSTILE]))))
def test_a_stream_in_parts_is_harmless_and_whole(parts: list[bytes]) -> None:
    shown, rest = b"", b""
    for part in parts:
        data, rest = terminal_bytes(rest + part)
        shown += data
    shown += terminal_bytes(rest, last=True)[0]
    text = shown.decode("utf-8")  # every byte in it is text
    assert harmless(text, "\n\t\r\b")
    plain = b"".join(parts).decode("utf-8", "surrogateescape")
    if plain.isprintable():
        assert text == plain


@given(st.lists(st.sampled_from(["\x1b]52;c;Zm9v\x1b\\", "\x1b]0;t\x07", "\x1b[2J", "\x1b[31m", "\x1bP1\x1b\\", "é", "x", "\r\n"])), st.integers(1, 5))
def test_whole_sequences_vanish_however_they_are_cut(pieces: list[str], size: int) -> None:
    data = "".join(pieces).encode()
    shown, rest = b"", b""
    for place in range(0, len(data), size):
        part, rest = terminal_bytes(rest + data[place : place + size])
        shown += part
    shown += terminal_bytes(rest, last=True)[0]
    assert shown.decode() == "".join(piece for piece in pieces if piece in ("\x1b[31m", "é", "x", "\r\n"))


def test_colours_and_progress_bars_stay() -> None:
    text = "\x1b[1;31mred\x1b[0m 10 %\r20 %\x1b[K\n\tx"
    assert terminal_text(text) == text
    assert terminal_text("a\x1b]52;c;xx\x07b\x1b[2Jc\x1b[5Ad") == "abcd"


class Terminal(io.TextIOWrapper):
    """A terminal that notes what is written to it."""

    def __init__(self, *, is_terminal: bool) -> None:
        self.seen = io.BytesIO()
        self.is_terminal = is_terminal
        super().__init__(self.seen, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return self.is_terminal


def _said(place: Path, words: list[str], *, is_terminal: bool) -> str:
    out, err = Terminal(is_terminal=is_terminal), Terminal(is_terminal=is_terminal)
    before = Path.cwd()
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            main(words)
    finally:
        os.chdir(before)
    return out.seen.getvalue().decode("utf-8") + err.seen.getvalue().decode("utf-8")


def _evidence(name: str, kind: int) -> dict[str, object]:
    kinds: list[dict[str, object]] = [
        {"exit_code": 1, "error": name, "summary": name},
        {"oom_kills": 1, "oom": Oom(OomScope.JOB, name)},
        {"excess": Excess(2**30, name, 2**29)},
        {"exit_code": 1, "full_file": name},
        {"harms": (Harm(name, HarmKind.CHANGED), Harm(name, HarmKind.CONTESTED))},
        {"undeclared": (name, f"res/{name}"), "read": (name,), "left_out": (name,), "left_in_tmp": ((name, 1),), "locked": (name,)},
        {"missing": (name,), "rejected": (f"{name} is a FIFO",), "inputs_changed": (name,), "leftover": (name,)},
        {"writers": (Writer(name, name, WritesTo.OUTPUT),), "truncated": True, "unkillable": (name,), "problems": (name,)},
        {"exit_code": 1, "refusals": (Refusal(RefusalKind.OUTSIDE, name, 30, name), Refusal(RefusalKind.UNDECLARED, name, 2))},
        {"exit_code": 127, "log_tail": name},
    ]
    return kinds[kind]


class _Parts(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.data = ""
        self._in_data = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]
        self._in_data = ("id", "data") in attrs

    def handle_data(self, data: str) -> None:
        self.data += data if self._in_data else ""
        self._in_data = False


KINDS = 10
COMMANDS = (
    ["jobs"], ["jobs", "--failed"], ["why", "call"], ["logs", "call"], ["audit"], ["verify"], ["gc", "-n", "--keep-runs", "0", "--compact-after", "1s"],
    ["resume", "-n"], ["advise"], ["top"], ["jobs", "s=\x1b]0;x\x07"], ["why", "\x1b[2J"],
)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(names, texts, st.integers(0, KINDS - 1), st.booleans())
@example("\x1b]52;c;Zm9v\x07\n\x9b2J\udc9b\u202e", "\x1b]0;t\x07\x9b2J\u202e", 5, True)
@example('x"\nrule y: #', "\x1b[2J", 4, False)
def test_no_command_passes_orders_on(name: str, said: str, kind: int, is_terminal: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="\"'><img src=x onerror=y>&") as directory:
        place = Path(directory)
        safe = said.encode("utf-8", "replace").decode()
        made = [
            Made(wildcards={"s": name}, evidence=_evidence(name, kind), stderr=f"Error: {safe}\n", outputs=(name.replace("/", "_"),), logs=("a.log",)),
            Made(wildcards={"s": name}, evidence={"undeclared": (name,)}, start=9.0),
        ]
        write_run(place, made)
        for words in COMMANDS:
            shown = _said(place, words, is_terminal=is_terminal)
            if words[0] != "logs" or is_terminal:
                assert harmless(shown, "\n\t\r\b" if words[0] == "logs" else "\n\t"), (words, shown)
        if not is_terminal:
            assert _said(place, ["jobs"], is_terminal=False).count("\n") == 3
        for words in (["jobs", "--json"], ["why", "call", "--json"], ["audit", "--json"], ["verify", "--json"]):
            text = _said(place, words, is_terminal=is_terminal)
            assert harmless(text), words
            json.loads(text)
        table = _said(place, ["report", "--tsv"], is_terminal=is_terminal).splitlines()
        assert len(table) == 3 and len({line.count("\t") for line in table}) == 1
        page = _said(place, ["report", "-o", "-"], is_terminal=is_terminal)
        assert all(char.isprintable() or char in "\n\t" for char in page)
        parts = _Parts(page)
        assert parts.tags["script"] == 2 and not parts.tags.keys() & {"img", "iframe", "object", "embed", "base"}
        assert not [name for name in parts.attributes if name.startswith("on") or name in ("style", "src", "srcdoc", "action")]
        assert all(link.startswith(("#", "data:,")) for link in parts.links)
        assert len(json.loads(parts.data)["rows"]) == 2


@settings(max_examples=200, deadline=None)
@given(names, texts, st.integers(0, KINDS - 1))
def test_no_message_of_a_run_passes_orders_on(name: str, said: str, kind: int) -> None:
    values = {"exit_code": 0, "signal": None, "error": None, **_evidence(name, kind)}
    verdict: Verdict = judge(Evidence(stderr_tail=said, **values), spec("00001-call", None), Usage(), "", 1.0)  # type: ignore[arg-type]
    lines = _message(verdict, SimpleNamespace(is_group=lambda: True))
    assert all(harmless(line, "\t") for line in lines), lines
    record = {**encode(verdict), "rule": "call", "wildcards": {"s": name}}
    assert harmless(summary_after_failure([record], 0, ""))
    explain(record, Told(said))
    notes = Notes()
    notes.add("call", {"s": name}, verdict.notes)
    assert all(harmless(line) for line in notes.lines()), list(notes.lines())
    pasted = [line for text in (verdict.reason, verdict.remedy, *verdict.notes) for line in re.findall(r'output: ("(?:[^"\\]|\\.)*")', text)]
    for literal in pasted:
        assert not {"{", "}"} & set(ast.literal_eval(literal)), "a wildcard that the rule does not have"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_live_stream_keeps_its_orders_from_a_terminal(tmp_path: Path, is_terminal: bool) -> None:
    read_end, job = os.pipe2(os.O_NONBLOCK)
    reader, echo = os.openpty() if is_terminal else os.pipe()
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    stream = Stream(read_end, log, echo)
    hostile = "\x1b]52;c;Zm9v\x07ok \x1b[31mred\x1b[0m \u202e\x9b2J\x1b]0;never ended"
    for part in (hostile[:5], hostile[5:]):
        os.write(job, part.encode())
        stream.pump()
    os.close(job)
    stream.drain()
    stream.show(wait=True)
    data = b""
    while b"never ended" not in data:  # a terminal passes it on a little later
        assert select.select([reader], [], [], DEADLINE)[0], data
        data += os.read(reader, 65536)
    shown = data.decode()
    if is_terminal:
        assert harmless(shown)
        assert shown.startswith("ok \x1b[31mred\x1b[0m \\u202e\\x9b2J\\x1b]0;never ended")
    else:
        assert shown == hostile
    assert (tmp_path / "log").read_text() == hostile
    for fd in (read_end, reader, echo, log):
        os.close(fd)


