"""One HTML page about a run, or about all of them: everything in it, nothing from the network.

gathered.py has the numbers, charts.py draws them, ``data/report.html.j2`` is the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from ..units import show_bytes, show_seconds
from .charts import draw_cpu, draw_memory, draw_timeline, plotly_source
from .explain import explain
from .extras import require
from .gathered import COLUMNS, gather
from .index import Index, Row, Selection
from .streamfile import read_telling
from .words import job_in_words

_MOST_FAILURES, _TAIL_LINES, _MOST_UNDECLARED = 25, 12, 200


def render(index: Index, run: str | None) -> str:
    """The page.

    Args:
        run: which run; None: all.

    Raises:
        UsageError: if plotly or jinja2 is not installed.

    """
    selection = Selection(run=run)
    found = gather(list(index.rows(selection, COLUMNS)))
    runs = [record for name, record in index.runs() if run in (None, name)]
    jinja2 = require("jinja2", "report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"bytes": _bytes, "seconds": _seconds, "number": lambda n: f"{n:,}", "script": _script}
    environment.filters["moment"] = _moment
    source = (resources.files(__package__) / "data" / "report.html.j2").read_text(encoding="utf-8")
    failures = list(_failures(index, selection))
    page: str = environment.from_string(source).render(
        runs=runs,
        found=found,
        rules=sorted(found.rules.values(), key=lambda rule: rule.rule),
        total=sum(found.outcomes.values()),
        not_succeeded=sum(rule.not_succeeded for rule in found.rules.values()),
        cpu_seconds=sum(rule.cpu_seconds for rule in found.rules.values()),
        failures=failures,
        more_failures=max(0, index.count(Selection(run=run, failed=True)) - len(failures)),
        isolation=_isolation(index, selection),
        undeclared=list(_undeclared(index, selection)),
        observed=_observed(index, selection),
        charts={name: draw(found) for name, draw in _CHARTS.items()},
        plotly=plotly_source(),
        environments=_environments(runs),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        css=(resources.files(__package__) / "data" / "report.css").read_text(encoding="utf-8"),
        javascript=(resources.files(__package__) / "data" / "report.js").read_text(encoding="utf-8"),
    )
    return page


_CHARTS = {"timeline": draw_timeline, "memory": draw_memory, "cpu": draw_cpu}


def _failures(index: Index, selection: Selection) -> Iterator[dict[str, object]]:
    """The newest attempts that failed, each with its five lines and the end of its stderr."""
    for record in index.newest_records(Selection(run=selection.run, failed=True), _MOST_FAILURES):
        tail = read_telling(record["directory"])
        yield {
            **asdict(explain(record, tail)),
            "outcome": record["outcome"],
            "tail": "\n".join(tail.splitlines()[-_TAIL_LINES:]),
        }


def _isolation(index: Index, selection: Selection) -> list[tuple[Mapping[str, Any], int]]:
    return [(json.loads(text), count) for text, count in index.distinct("$.isolation", selection) if text]


def _environments(runs: Sequence[Row]) -> dict[str, Row]:
    """The environments that runtimes have used, by identity; the newest run has the last word."""
    return {identity: environment for run in runs for identity, environment in (run.get("runtimes") or {}).items()}


def _undeclared(index: Index, selection: Selection) -> Iterator[tuple[str, str, str]]:
    """Job, kind of access, what."""
    left = _MOST_UNDECLARED
    for kind in ("writes", "reads"):
        for record in index.with_entries(f"$.undeclared_{kind}", selection):
            for entry in record[f"undeclared_{kind}"]:
                if left == 0:
                    return
                left -= 1
                yield (
                    job_in_words(record),
                    kind,
                    entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False),
                )


def _observed(index: Index, selection: Selection) -> bool:
    """Whether any record says what was read beside the inputs: null means that nobody looked."""
    return any(text is not None for text, _ in index.distinct("$.undeclared_reads", selection))


def _bytes(value: float | None) -> str:
    return "–" if value is None else show_bytes(value)


def _seconds(value: float | None) -> str:
    return "–" if value is None else show_seconds(value)


def _moment(text: str) -> str:
    """A time of the record for people: "2026-01-31 12:00:00 UTC"."""
    return f"{text[:19].replace('T', ' ')} UTC"


def _script(value: object) -> str:
    """JSON for a script element, where ``</script>`` and ``<!--`` would end it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c")
    markup: str = require("markupsafe", "report").Markup(safe)
    return markup
