"""The charts of the report, drawn by plotly. Each is JSON for plotly.js; a table repeats every number of a chart."""

from __future__ import annotations

from typing import Any

from ..spec.errors import require
from ..spec.units import MEBIBYTE
from .gathered import Gathered

_PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7"),
    *("#999933", "#882255", "#44AA99", "#AA4499", "#666666"),
)
"""Colours of Okabe and Ito and of Tol, safe for the colour-blind; red means failure and is not among them."""
_FAILED = "#D00000"
_MOST_LABELS = 2000
_LEGEND_COLUMNS = 6
_FONT = "system-ui, sans-serif"


def plotly_source() -> str:
    """The library's JavaScript, for the page.

    Raises:
        UsageError: if plotly is not installed.
    """
    return str(require("plotly.offline", "report").get_plotlyjs())


def draw_timeline(found: Gathered) -> str:
    """Jobs over time: a line of the chart is one CPU, and a job with several threads takes several."""
    go = require("plotly.graph_objects", "report")
    unit, factor = _time_unit(found.seconds)
    legend = 20 * -(-len(found.rules) // _LEGEND_COLUMNS)
    height = min(900, max(220, 120 + found.lanes * 22)) + legend
    width = max(1.0, min(16.0, (height - legend - 120) / max(1, found.lanes) * 0.8))
    traces = []
    with_labels = len(found.bars) <= _MOST_LABELS
    for number, rule in enumerate(sorted(found.rules)):
        bars = [bar for bar in found.bars if bar.rule == rule]
        traces.append(
            go.Scatter(
                x=[x for bar in bars for x in (round(bar.begin / factor, 3), round(bar.end / factor, 3), None)],
                y=[y for bar in bars for y in (bar.lane + 1, bar.lane + 1, None)],
                text=[t for bar in bars for t in (bar.label, bar.label, None)] if with_labels else None,
                hovertemplate="%{text}<extra></extra>" if with_labels else f"{rule} at %{{x}}<extra></extra>",
                mode="lines",
                line={"color": _PALETTE[number % len(_PALETTE)], "width": width},
                name=rule,
            )
        )
    failed = [bar for bar in found.bars if not bar.ok]
    if failed:
        traces.append(
            go.Scatter(
                x=[round(bar.end / factor, 3) for bar in failed],
                y=[bar.lane + 1 for bar in failed],
                text=[bar.label for bar in failed],
                hovertemplate="%{text}: not succeeded<extra></extra>",
                mode="markers",
                marker={"symbol": "x", "color": _FAILED, "size": 8},
                name="not succeeded",
            )
        )
    lanes = {"title": {"text": "CPU"}, "range": [found.lanes + 0.6, 0.4], "dtick": max(1, found.lanes // 16)}
    return _figure(traces, height, unit, yaxis=lanes, hovermode="closest")


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds < 300:
        return "seconds since the start", 1.0
    return ("minutes since the start", 60.0) if seconds < 4 * 3600 else ("hours since the start", 3600.0)


def draw_memory(found: Gathered) -> str:
    """Used and requested memory, by rule."""
    limits = {rule.rule: rule.memory_limit_bytes for rule in found.rules.values() if rule.memory_limit_bytes}
    scaled = {rule: limit / MEBIBYTE for rule, limit in limits.items()}
    return _draw_use(found, "memory_bytes", MEBIBYTE, scaled, "MiB of memory")


def draw_cpu(found: Gathered) -> str:
    """CPUs in use on average and requested, by rule."""
    return _draw_use(found, "cores", 1.0, {rule.rule: rule.cpus for rule in found.rules.values()}, "CPUs")


def _draw_use(found: Gathered, what: str, scale: float, asked: dict[str, float], unit: str) -> str:
    go = require("plotly.graph_objects", "report")
    names = sorted(found.rules, reverse=True)  # plotly draws the first at the bottom
    spreads = [found.rules[name].spread(what) for name in names]
    traces = [
        go.Bar(
            x=[round(spread.most / scale, 3) for spread in spreads], y=names, orientation="h",
            name="most used", marker={"color": "#56B4E9"},
        ),
        go.Bar(
            x=[round(spread.median / scale, 3) for spread in spreads], y=names, orientation="h",
            name="median used", marker={"color": "#0072B2"},
        ),
        go.Scatter(
            x=[asked.get(name) for name in names], y=names, mode="markers", name="asked for",
            marker={"symbol": "line-ns-open", "color": "#000000", "size": 18, "line": {"width": 3}},
        ),
    ]  # fmt: skip
    return _figure(traces, 120 + 34 * len(names), unit, yaxis={"automargin": True}, barmode="group")


def _figure(traces: list[Any], height: int, unit: str, **layout: Any) -> str:
    """A chart as JSON; ``unit`` is the title of its horizontal axis."""
    common = {
        "height": height,
        "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        "margin": {"l": 50, "r": 10, "t": 10, "b": 50},
        "font": {"family": _FONT, "size": 13},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "template": "none",
    }
    return str(require("plotly.graph_objects", "report").Figure(traces, common | layout).to_json())
