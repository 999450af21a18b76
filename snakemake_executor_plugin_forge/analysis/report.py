"""One self-contained HTML page about a run, or about all runs.

analysis/gathered.py has the numbers, analysis/charts.py draws them, ``data/report.html.j2`` is the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources

from ..record.index import Index, Row, Selection
from ..spec.errors import require
from ..spec.printable import json_text, printable
from ..spec.units import show_bytes, show_seconds
from .attempt_log import read_telling
from .charts import draw_cpu, draw_memory, draw_timeline, plotly_source
from .explain import explain, job_in_words
from .gathered import COLUMNS, gather

_MOST_FAILURES, _TAIL_LINES, _MOST_UNDECLARED = 25, 12, 200


def _finalized(value: object) -> object:
    """Return what the page shows of a value; text that a filter has made for the page stays as it is."""
    return value if not isinstance(value, str) or hasattr(value, "__html__") else printable(value, keep="\n\t")


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
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_finalized)
    environment.filters |= {"bytes": _or_dash(show_bytes), "seconds": _or_dash(show_seconds), "script": _script}
    environment.filters |= {"number": lambda n: f"{n:,}", "moment": _moment}
    data = resources.files(__package__) / "data"
    source = (data / "report.html.j2").read_text(encoding="utf-8")
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
        isolation=[(json.loads(text), count) for text, count in index.distinct("$.isolation", selection) if text],
        undeclared=list(_undeclared(index, selection)),
        # Null in a record means that no audit ran.
        observed=any(text is not None for text, _ in index.distinct("$.undeclared_reads", selection)),
        charts={name: draw(found) for name, draw in _CHARTS.items()},
        plotly=plotly_source(),
        environments=_environments(runs),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        css=(data / "report.css").read_text(encoding="utf-8"),
        javascript=(data / "report.js").read_text(encoding="utf-8"),
    )
    return page


_CHARTS = {"timeline": draw_timeline, "memory": draw_memory, "cpu": draw_cpu}


def _failures(index: Index, selection: Selection) -> Iterator[dict[str, object]]:
    """The newest failed attempts, each with its five lines and the end of its stderr."""
    for record in index.newest_records(Selection(run=selection.run, failed=True), _MOST_FAILURES):
        told = read_telling(record["directory"])
        yield {
            **asdict(explain(record, told)),
            "outcome": record["outcome"],
            "source": told.source,
            "tail": "\n".join(told.text.splitlines()[-_TAIL_LINES:]),
        }


def _environments(runs: Sequence[Row]) -> dict[str, Row]:
    """The environments that runtimes have used, by identity; the newest run's data win."""
    return {identity: environment for run in runs for identity, environment in (run.get("runtimes") or {}).items()}


def _undeclared(index: Index, selection: Selection) -> Iterator[tuple[str, str, str]]:
    """Rows of job, kind of access and path."""
    left = _MOST_UNDECLARED
    for kind in ("writes", "reads"):
        for record in index.with_entries(f"$.undeclared_{kind}", selection):
            for entry in record[f"undeclared_{kind}"]:
                if left == 0:
                    return
                left -= 1
                text = entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
                yield job_in_words(record), kind, text


def _or_dash(show: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "–" if value is None else show(value)


def _moment(text: str) -> str:
    """A time of the record for people: "2026-01-31 12:00:00 UTC"."""
    return f"{text[:19].replace('T', ' ')} UTC"


def _script(value: object) -> str:
    """JSON for a script element, where ``</script>`` and ``<!--`` would end it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    safe = json_text(text).replace("<", "\\u003c")
    markup: str = require("markupsafe", "report").Markup(safe)
    return markup
