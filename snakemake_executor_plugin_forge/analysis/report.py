"""One self-contained HTML page about a run, or about all runs.

analysis/gathered.py has the numbers, drawers.py the single attempts, timeline.py and rule_graph.py the pictures;
``data/report.html.j2`` is the page. Names, commands and logs come from jobs, which may be hostile: jinja2 escapes all
text, the script sets text and never HTML, and the page's own policy (CSP) runs no other script than this one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from ..record import archive
from ..record.index import Index, Row, Selection
from ..record.reader import run_outcome
from ..spec.printable import json_text, printable, shell_words
from ..spec.units import show_bytes, show_seconds
from . import advise, rule_graph, timeline, trace
from .drawers import Failure, drawers, failed_records, failures, job_key
from .explain import job_in_words
from .gathered import COLUMNS, Gathered, gather

_MOST_GROUPS, _MOST_UNDECLARED = 25, 200
_WORDS = {
    "succeeded": "Succeeded",
    "failed": "Failed",
    "stopped": "Stopped",
    "running": "Still running",
    "interrupted": "Interrupted",
    "no jobs": "Nothing ran",
}


def render(index: Index, run: str | None, place: str | None) -> str:
    """The page.

    Args:
        run: which run; None: all.
        place: the directory of the page, for links to the record; None: it has none yet.
    """
    selection = Selection(run=run)
    runs = [record for name, record in index.runs() if run in (None, name)]
    rows = list(index.rows(selection, (*COLUMNS, "notes")))
    found = gather(rows, (runs[-1].get("plan") or {}) if runs else {})
    failed = failed_records(index, run)
    groups = list(failures(failed.values(), {job_key(row): row["outcome"] for row in rows}))
    opened = drawers(index.state, rows, failed)
    data = resources.files(__package__) / "data"
    css, javascript, source = (
        (data / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html.j2")
    )
    colours = {rule: timeline.colour(number) for number, rule in enumerate(sorted(found.rules))}
    css += "".join(f".r{number}{{--c:{colour}}}\n" for number, colour in enumerate(colours.values()))
    page: str = _environment().from_string(source).render(
        runs=runs,
        outcome=(outcome := _outcome(runs, found)),
        headline=_WORDS[outcome],
        found=found,
        jobs={what: found.total(what) for what in ("done", "failed", "cancelled", "running", "pending")},
        wall=_wall_seconds(runs[-1]) if len(runs) == 1 else None,
        rules=sorted(found.rules.values(), key=lambda rule: rule.rule),
        colours={rule: f"r{number}" for number, rule in enumerate(colours)},
        failures=groups[:_MOST_GROUPS],
        hidden=_hidden(index, run, groups),
        graph=_graph(runs[-1].get("plan") or {}) if runs else None,
        most_rules=rule_graph.MOST_RULES,
        ticks=timeline.ticks(found.seconds),
        areas={"cpus": timeline.area(found.cpus, 40), "waiting": timeline.area(found.waiting, 40)},
        advice=(advice := _advice(index)),
        profile=advise.profile_block(advice),
        isolation=[(json.loads(text), count) for text, count in index.distinct("$.isolation", selection) if text],
        undeclared=list(_undeclared(index, selection)),
        # Null in a record means that no audit ran.
        observed=any(text is not None for text, _ in index.distinct("$.undeclared_reads", selection)),
        environments=_environments(runs),
        data=_data(index, found, opened, place),
        opened=len(opened),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        css=css,
        javascript=javascript,
        hashes={"css": _hash(css), "javascript": _hash(javascript)},
    )  # fmt: skip
    return page


def _environment() -> jinja2.Environment:
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(autoescape=True, finalize=_finalized, **options)
    filters: dict[str, Any] = environment.filters
    filters |= {"bytes": _or_dash(show_bytes), "seconds": _or_dash(show_seconds), "script": _script}
    filters |= {"number": lambda n: f"{n:,}", "moment": _moment}
    filters["decimals"] = _or_dash(lambda number: f"{number:.2f}")
    filters["command"] = _command
    return environment


def _finalized(value: object) -> object:
    """Return what the page shows of a value; text that a filter has made for the page stays as it is."""
    return value if not isinstance(value, str) or hasattr(value, "__html__") else printable(value, keep="\n\t")


def _outcome(runs: Sequence[Row], found: Gathered) -> str:
    """The outcome of the newest run; ``stopped``: no job failed, but some were cancelled."""
    last = [outcome for counts in found.jobs.values() for outcome in counts.last]
    outcome = run_outcome(runs[-1], last) if runs else "no jobs"
    return "stopped" if outcome == "failed" and not found.total("failed") else outcome


def _advice(index: Index) -> list[advise.Advice]:
    rows = index.rows(Selection(), advise.COLUMNS)
    return advise.advise(rows, run_memory_bytes=advise.memory_of_newest(index.runs()))


def _wall_seconds(run: Row) -> float | None:
    try:
        begin, end = (trace.epoch_ms(text) for text in (run.get("started"), run.get("ended")))
    except ValueError:  # a damaged record
        return None
    return None if begin is None or end is None else (end - begin) / 1000


def _hidden(index: Index, run: str | None, groups: Sequence[Failure]) -> int:
    """The number of failed attempts that the page does not explain."""
    explained = sum(max(1, len(group.jobs) + group.more_jobs) for group in groups[:_MOST_GROUPS])
    return index.count(Selection(run=run, failed=True)) - explained


def _graph(plan: Mapping[str, Row]) -> dict[str, Any]:
    """The rules of the run with their needs, and their picture if it can be read."""
    needs = {rule: planned["after"] for rule, planned in plan.items()}
    names = set(needs).union(*needs.values())
    return {
        "needs": {rule: needs.get(rule, []) for rule in sorted(names)},
        "picture": rule_graph.draw(needs) if len(names) <= rule_graph.MOST_RULES else None,
        "width": rule_graph.BOX_WIDTH,
        "height": rule_graph.BOX_HEIGHT,
    }


def _data(index: Index, found: Gathered, opened: Mapping[str, Any], place: str | None) -> dict[str, Any]:
    """The values that the page's script works with."""
    directory = trace.COLUMNS.index("directory")
    numbers = {cells[directory]: number for number, cells in enumerate(found.attempts)}
    own = printable(".snakemake/forge/runs/")
    runs = f"{index.state}/runs"
    base = runs if place is None else os.path.relpath(runs, os.path.realpath(place))
    gone = [name for name, _ in index.runs() if os.path.exists(f"{runs}/{name}/{archive.NAME}")]
    return {
        "columns": trace.COLUMNS,
        "rows": found.attempts,
        "drawn": found.drawn,
        "seconds": found.seconds,
        "lanes": {rule: band.lane_px for rule, band in found.bands.items()},
        "drawers": {numbers[printable(f"{own}{name}")]: content for name, content in opened.items()},
        "base": ("file://" if place is None else "") + quote(os.fsencode(base)),
        "archived": gone,
    }


def _environments(runs: Sequence[Row]) -> dict[str, Row]:
    """The environments that runtimes have used, by identity; the newest run's data win."""
    return {identity: environment for run in runs for identity, environment in (run.get("runtimes") or {}).items()}


def _undeclared(index: Index, selection: Selection) -> Iterator[tuple[str, str, str]]:
    """Rows of job, kind of access and path; one more than the page shows if there are more."""
    left = _MOST_UNDECLARED
    for kind in ("writes", "reads"):
        for record in index.with_entries(f"$.undeclared_{kind}", selection):
            for entry in record[f"undeclared_{kind}"]:
                if left == 0:
                    yield "…", "", f"more than {_MOST_UNDECLARED}: snakemake-forge audit has all"
                    return
                left -= 1
                text = entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
                yield job_in_words(record), kind, text


def _command(words: Sequence[str]) -> str:
    """The command of a run as its user knows it."""
    program, *rest = words or [""]
    name = ["python", "-m", "snakemake"] if program.endswith("/__main__.py") else [os.path.basename(program)]
    return shell_words([*name, *rest])


def _or_dash(show: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "–" if value is None else show(value)


def _moment(text: str) -> str:
    """A time of the record for people: "2026-01-31 12:00:00 UTC"."""
    return f"{text[:19].replace('T', ' ')} UTC"


def _script(value: object) -> Markup:
    """JSON for a script element, where ``</script>`` and ``<!--`` would end it."""
    text = json_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - the line above makes it safe


def _hash(text: str) -> str:
    """The source of a content security policy that allows just this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
