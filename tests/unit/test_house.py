"""The shape of the package: places of files, imports, sizes; and the words of the package, tests and documents."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "snakemake_executor_plugin_forge"
OTHERS = [ROOT / "snakemake_logger_plugin_forge", ROOT / "snakemake_scheduler_plugin_forge"]
FILES = sorted(path for package in (PACKAGE, *OTHERS) for path in package.rglob("*.py"))
LINES, FUNCTION, CLASS = 450, 50, 250
REASON = re.compile(r"\b[Ll]ong(er than other \w+:| because)")
"""The sentence that excuses a size: above a definition, in its docstring, or within the first lines of a file."""

BANNED = re.compile(
    r"\b(g[ia]ves? up|given up|giving up|anew|stands? back|let off|as ever|manieth|goes on|going on|jobs? go on|bears the|"
    r"no feature of the|a look\b|looks of|the opposite)\b", re.IGNORECASE)
SUBJECTLESS = re.compile(
    r'^ *"""(Of|Those|That of|The same|One that|Who|Whose|Whoever|What|Whatever|Where|When|Which|How|All that|For|In their|The opposite|'
    r'As above|As below|Such that|Not|But|Once|Unless|Nor)\b', re.MULTILINE)


@cache  # not at the import, which each worker does to collect
def _trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_the_root_holds_the_face_alone() -> None:
    assert {p.name for p in PACKAGE.iterdir() if p.is_file()} == {"__init__.py", "py.typed"}


@cache
def _module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere: also late ones tie files to each other."""
    names, known = set(), {_module(p) for p in FILES}
    package = _module(path).split(".") if path.name == "__init__.py" else _module(path).split(".")[:-1]
    for node in ast.walk(_trees()[path]):
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            names |= {f"{whole}.{alias.name}" if f"{whole}.{alias.name}" in known else whole for alias in node.names}
    return names & known - {_module(path)}


def test_no_two_files_import_each_other_on_any_way() -> None:
    graph = {_module(path): _imports(path) for path in FILES if path.name != "__init__.py"}
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name):], name])
        if name not in done:
            for other in graph.get(name, ()):
                follow(other, (*way, name))
            done.add(name)

    for name in graph:
        follow(name, ())


def test_sizes_have_a_bound_or_a_reason() -> None:
    found = []
    for path, tree in _trees().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        where = path.relative_to(ROOT)
        if len(lines) > LINES and not REASON.search("\n".join(lines[:12])):
            found.append(f"{where}: {len(lines)} lines")
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            size = (node.end_lineno or 0) - node.lineno + 1
            most = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
            above = "\n".join(lines[max(0, node.lineno - 4):node.lineno + 6])
            if size > most and not REASON.search(above):
                found.append(f"{where}: {node.name} has {size} lines")
    assert not found, "\n".join(found)


def test_each_class_has_a_name_of_its_own() -> None:
    places = defaultdict(list)
    for path, tree in _trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def _texts() -> Iterator[tuple[str, str]]:
    """Names and contents of all files with sentences, but for this file, which quotes the words."""
    folders = [PACKAGE, *OTHERS, *(ROOT / name for name in ("docs", "tests", "bench", "workflows"))]
    paths = [path for folder in folders for pattern in ("*.py", "*.md", "*.smk", "Snakefile") for path in folder.rglob(pattern)]
    for path in (*ROOT.glob("*.md"), ROOT / "Makefile", *sorted(paths)):
        if path != Path(__file__):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def _found(pattern: re.Pattern[str]) -> str:
    return "\n".join(f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {text[match.start():].splitlines()[0]}"
                     for name, text in _texts() for match in pattern.finditer(text))


def test_docstrings_begin_with_their_subject() -> None:
    assert not (found := _found(SUBJECTLESS)), found


def test_words_are_those_of_the_field() -> None:
    assert not (found := _found(BANNED)), found


def _anchors(text: str) -> set[str]:
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", m[1]) for m in re.finditer(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles} | set(
        re.findall(r'<a id="([^"]+)"', text))


def test_links_between_documents_lead_somewhere() -> None:
    dead = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").rglob("*.md")]:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("http", "mailto")):
                name, _, anchor = link.partition("#")
                target = path.parent / name if name else path
                known = target.exists() and (not anchor or anchor in _anchors(target.read_text(encoding="utf-8")))
                dead += [] if known else [f"{path.relative_to(ROOT)}: {link}"]
    assert not dead, "\n".join(dead)
