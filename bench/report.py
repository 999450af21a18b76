"""The results as tables, with rich if it is installed and as plain text otherwise."""

from dataclasses import dataclass, field
from statistics import median

from bench.peers import FORGES, PEERS
from bench.results import TARGETS, Results
from bench.settings import FORGE, LOCAL, Sizes

NOTHING = "-"


@dataclass
class Table:
    """A table of text cells; the first column is left-aligned, the others right-aligned."""

    title: str
    headers: list[str]
    rows: list[list[str]] = field(default_factory=list)


def show(results: Results, sizes: Sizes) -> None:
    """Print all tables of the results, the targets last."""
    tables = [_timed_table(results, case, sizes) for case in ("shell", "run", "script", "heavy", "dag")]
    tables += [
        _peers_table(results),
        _crowd_table(results),
        _memory_table(results),
        _roles_table(results),
        _schedule_table(results, sizes),
        _startup_table(results),
        _targets_table(results),
    ]
    for table in tables:
        if table.rows:
            _print(table)


def _titles(sizes: Sizes) -> dict[str, str]:
    return {
        "shell": f"shell: {sizes.shell} trivial shell jobs",
        "run": f"run: {sizes.run} run jobs",
        "script": f"script: {sizes.script} script jobs",
        "heavy": f"heavy: gzip and sort of {sizes.heavy_megabytes} MB",
        "dag": f"dag: {sizes.dag_run} of {sizes.dag} jobs to run",
    }


def _timed_table(results: Results, case: str, sizes: Sizes) -> Table:
    headers = ["executor", "jobs", "wall s", "min-max", "x local", "CPU s", "x local"]
    per_job = ["ms/job", "x local", "CPU ms/job", "x local"]
    with_jobs = case != "heavy"
    table = Table(_titles(sizes)[case], headers + per_job * with_jobs + ["left running"])
    if case == "dag":
        table.headers += ["ms/job x shell", "CPU x shell"]
    for name in results.samples.get(case, {}):
        row = [name, _number(results.median(case, name, "jobs"), 0), *_spread(results, case, name)]
        for metric, digits in [("job_wall_ms", 1), ("job_cpu_ms", 1)] * with_jobs:
            row += _with_ratio(results, case, name, metric, digits)
        row.append(_number(max(results.values(case, name, "left_running")), 0))
        if case == "dag":
            row += [_number(results.growth(name), 2), _number(results.growth(name, "job_cpu_ms"), 2)]
        table.rows.append(row)
    return table


def _spread(results: Results, case: str, name: str) -> list[str]:
    """Wall time with its range, and CPU time, each with its ratio."""
    walls = results.values(case, name, "wall_s")
    wall, wall_ratio = _with_ratio(results, case, name, "wall_s", 2)
    extent = f"{min(walls):.2f}-{max(walls):.2f}"
    return [wall, extent, wall_ratio, *_with_ratio(results, case, name, "cpu_s", 2)]


def _with_ratio(results: Results, case: str, name: str, metric: str, digits: int) -> list[str]:
    value = _number(results.median(case, name, metric), digits)
    return [value, NOTHING if name == LOCAL else _number(results.to_local(case, name, metric), 2)]


def _peers_table(results: Results) -> Table:
    table = Table(
        "sandbox: one around bash, set up and taken down", ["program", "wall ms", "over bare bash ms", "CPU ms"]
    )
    measured = results.samples.get("sandbox", {}).get(FORGE, {})
    for name in ("bash", *FORGES, *PEERS):
        if f"{name}_ms" in measured:
            cells = [_number(median(measured[f"{name}{what}_ms"]), 1) for what in ("", "_added", "_cpu")]
            table.rows.append([name, *cells])
    return table


def _crowd_table(results: Results) -> Table:
    table = Table("crowd: sleeping jobs at once", ["executor", "jobs", "all run after s", "private MB", "for each"])
    for name in results.samples.get("crowd", {}):
        metrics = (("jobs", 0), ("all_run_s", 2), ("private_mb", 1), ("private_per_job_mb", 2))
        table.rows.append([name, *(_number(results.median("crowd", name, what), digits) for what, digits in metrics)])
    return table


def _memory_table(results: Results) -> Table:
    many = results.median("memory", LOCAL, "jobs") or next(
        (results.median("memory", name, "jobs") for name in results.samples.get("memory", {})), None
    )
    table = Table(
        f"memory: PSS in MB with 1 and with {_number(many, 0)} sleeping jobs",
        ["executor", "beside Snakemake, 1", "many", "per job", "whole tree, 1", "many", "per job"],
    )
    columns = ("base_mb", "many_executor_mb", "per_job_mb", "one_tree_mb", "many_tree_mb", "per_job_tree_mb")
    for name in results.samples.get("memory", {}):
        cells = [_number(results.median("memory", name, metric), 1) for metric in columns]
        table.rows.append([name, *cells])
    return table


def _roles_table(results: Results) -> Table:
    """The memory of each kind of process."""
    table = Table("memory: PSS in MB by kind of process", ["executor and kind", "1 job", "many"])
    hidden = {"executor", "tree"}
    for name, metrics in results.samples.get("memory", {}).items():
        for metric in metrics:
            label, _, role = metric.removesuffix("_mb").partition("_")
            if label == "many" and role not in hidden:
                sizes = (results.median("memory", name, f"{count}_{role}_mb") for count in ("one", "many"))
                table.rows.append([f"{name}: {role}", *(_number(size, 1) for size in sizes)])
    return table


def _schedule_table(results: Results, sizes: Sizes) -> Table:
    table = Table(
        f"schedule: {sizes.schedule} independent jobs, and as many chains of three; -j 8; local is extrapolated",
        ["jobs", "executor and scheduler", "wall s", "forge over it", "CPU s", "forge over it", "temporary files"],
    )
    if "schedule" not in results.samples:
        return table
    for workflow in ("shell", "chain"):
        rows = [(LOCAL, "greedy", f"{workflow}_greedy"), (LOCAL, "ilp", f"{workflow}_ilp"), (FORGE, "forge", workflow)]
        for executor, scheduler, key in rows:
            cells = [workflow, f"{executor} {scheduler}"]
            for kind, digits in (("wall_s", 0), ("cpu_s", 0)):
                ratio = results.ratio(
                    ("schedule", FORGE, f"{workflow}_{kind}"), ("schedule", executor, f"{key}_{kind}")
                )
                value = results.median("schedule", executor, f"{key}_{kind}")
                cells += [_number(value, digits), NOTHING if executor == FORGE else _number(ratio, 3)]
            table.rows.append([*cells, _number(results.median("schedule", executor, f"{key}_temporary"), 0)])
    return table


def _startup_table(results: Results) -> Table:
    table = Table(
        "startup: `snakemake --version` with the plugin visible and hidden",
        [
            *("plugin", "pairs", "start ms, hidden, fastest", "plugin CPU ms", "plugin ms, fastest"),
            *("visible - hidden: CPU ms", "ms, of the fastest"),
        ],
    )
    for name in results.samples.get("startup", {}):
        hidden, shown, plugin = (
            results.values("startup", name, metric) for metric in ("hide_start_ms", "show_start_ms", "show_plugin_ms")
        )
        cells = [
            _number(min(hidden), 0),
            _number(results.median("startup", name, "show_plugin_cpu_ms"), 1),
            _number(min(plugin), 1),
            _number(results.median("startup", name, "added_start_cpu_ms"), 1),
            _number(min(shown) - min(hidden), 1),
        ]
        table.rows.append([name, str(len(hidden)), *cells])
    return table


def _targets_table(results: Results) -> Table:
    table = Table("targets of forge", ["target", "limit", "measured", "verdict"])
    words = {True: "met", False: "not met", None: "not measured"}
    for target in TARGETS:
        limit = f"{'≥' if target.at_least else '≤'} {target.limit:g} {target.unit}"
        value = _number(target.value(results), 2)
        table.rows.append([target.name, limit, value, words[target.met(results)]])
    return table


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _print(table: Table) -> None:
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        _print_plain(table)
        return
    rich = RichTable(title=table.title, title_justify="left")
    for number, header in enumerate(table.headers):
        rich.add_column(header, justify="right" if number else "left")
    for row in table.rows:
        rich.add_row(*row)
    console = Console()
    if not console.is_terminal:
        # A file or pipe has no width to fit: never wrap there.
        console.width = 200
    console.print(rich)


def _print_plain(table: Table) -> None:
    lines = [table.headers, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.headers))]
    print(f"\n{table.title}")
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))
