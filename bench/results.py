"""The results of a call: samples, their medians and ratios, and the project's targets."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.peers import FORGES
from bench.settings import CLUSTER, FORGE, LOCAL
from bench.timed import Metrics

# A metric of an executor in a case.
Key = tuple[str, str, str]

RATIO_METRICS = ("wall_s", "cpu_s", "job_wall_ms", "job_cpu_ms")


class Results:
    """All samples by case, executor and metric."""

    def __init__(self) -> None:
        """Start without samples."""
        self.samples: dict[str, dict[str, Metrics]] = {}

    def add(self, case: str, executor: str, metrics: Metrics) -> None:
        """Append the samples of one round."""
        for metric, values in metrics.items():
            kept = self.samples.setdefault(case, {}).setdefault(executor, {})
            kept.setdefault(metric, []).extend(values)

    def values(self, case: str, executor: str, metric: str) -> list[float]:
        """Return the samples of a metric, none if it was not measured."""
        return self.samples.get(case, {}).get(executor, {}).get(metric, [])

    def median(self, case: str, executor: str, metric: str) -> float | None:
        """Return the median of a metric, if measured."""
        values = self.values(case, executor, metric)
        return median(values) if values else None

    def ratio(self, over: Key, under: Key) -> float | None:
        """Return the median of the ratios of two metrics round by round.

        Both sides of each ratio were measured within minutes, so a load that comes and goes between rounds
        cancels out. Per-job times that noise made zero or negative have no ratio.
        """
        pairs = zip(self.values(*over), self.values(*under), strict=False)
        ratios = [above / below for above, below in pairs if above > 0 and below > 0]
        return median(ratios) if ratios else None

    def to_local(self, case: str, executor: str, metric: str) -> float | None:
        """Compare with the local executor; totals only where both ran the same number of jobs."""
        same = self.median(case, executor, "jobs") == self.median(case, LOCAL, "jobs")
        if not same and not metric.startswith("job_"):
            return None
        return self.ratio((case, executor, metric), (case, LOCAL, metric))

    def growth(self, executor: str, metric: str = "job_wall_ms") -> float | None:
        """Compare the cost of a job in the large DAG with its cost among the shell jobs."""
        return self.ratio(("dag", executor, metric), ("shell", executor, metric))

    def medians(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the medians of everything, for the record."""
        return {
            case: {
                executor: {metric: median(values) for metric, values in metrics.items()}
                for executor, metrics in executors.items()
            }
            for case, executors in self.samples.items()
        }

    def ratios(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return all known ratios to the local executor, for the record."""
        return {
            case: {
                executor: {
                    metric: value
                    for metric in RATIO_METRICS
                    if (value := self.to_local(case, executor, metric)) is not None
                }
                for executor in executors
            }
            for case, executors in self.samples.items()
        }


@dataclass(frozen=True)
class Target:
    """A limit that the project set itself."""

    name: str
    unit: str
    limit: float
    value: Callable[[Results], float | None]
    at_least: bool = False

    def met(self, results: Results) -> bool | None:
        """Whether the limit is kept; None if it was not measured."""
        value = self.value(results)
        if value is None:
            return None
        return value >= self.limit if self.at_least else value <= self.limit


def _wall_to_local(case: str) -> Callable[[Results], float | None]:
    return lambda results: results.to_local(case, FORGE, "wall_s")


def _median(case: str, metric: str) -> Callable[[Results], float | None]:
    return lambda results: results.median(case, FORGE, metric)


def _to_scheduler(workflow: str, scheduler: str, kind: str = "wall_s") -> Callable[[Results], float | None]:
    """Compare Forge and its scheduler with the local executor and one of Snakemake's, at the same number of jobs."""
    under = ("schedule", LOCAL, f"{workflow}_{scheduler}_{kind}")
    return lambda results: results.ratio(("schedule", FORGE, f"{workflow}_{kind}"), under)


def _cluster_to_forge(results: Results) -> float | None:
    return results.ratio(("shell", CLUSTER, "job_wall_ms"), ("shell", FORGE, "job_wall_ms"))


def _crowd_to_local(results: Results) -> float | None:
    return results.ratio(("crowd", FORGE, "all_run_s"), ("crowd", LOCAL, "all_run_s"))


TARGETS = (
    Target("shell jobs: wall over local", "x", 1.1, _wall_to_local("shell")),
    Target("shell jobs: CPU over local", "x", 1.35, lambda results: results.to_local("shell", FORGE, "cpu_s")),
    Target("run jobs: wall over local", "x", 0.2, _wall_to_local("run")),
    Target("script jobs: wall over local", "x", 0.95, _wall_to_local("script")),
    Target("heavy job: wall over local", "x", 1.02, _wall_to_local("heavy")),
    Target("shell jobs: conda runtime over host", "x", 1.1, _median("activation", "conda_to_host")),
    Target("shell jobs: conda runtime added, CPU per job", "ms", 5, _median("activation", "added_cpu_ms")),
    Target("heavy job: with --forge-audit over without", "x", 1.03, _median("audit", "heavy_ratio")),
    Target("reading 5,000 files: with --forge-audit over without", "x", 1.03, _median("audit", "reads_ratio")),
    Target("time per shell job: cluster-generic over forge", "x", 50, _cluster_to_forge, at_least=True),
    Target("time per job: large DAG over shell case", "x", 1.3, lambda results: results.growth(FORGE)),
    Target("memory: nursery and idle supervisors", "MB", 80, _median("memory", "base_mb")),
    Target("memory: supervisor of a running job", "MB", 10, _median("memory", "per_job_mb")),
    Target("snakemake-forge: start of a command, CPU", "ms", 150, _median("reading", "start_cpu_ms")),
    Target("jobs with 10,000 records, CPU", "ms", 300, _median("reading", "jobs_cpu_ms")),
    Target("why with 10,000 records, CPU", "ms", 300, _median("reading", "why_cpu_ms")),
    Target("report of 10,000 records, CPU", "ms", 5000, _median("reading", "report_cpu_ms")),
    Target("report of 10,000 records, size", "MB", 8, _median("reading", "report_mb")),
    Target("record of a job, CPU", "ms", 1, _median("recording", "record_cpu_ms")),
    Target("environment of 100 files, first look", "ms", 50, _median("verification", "cold_ms")),
    Target("environment of 100 files, unchanged", "ms", 5, _median("verification", "warm_ms")),
    Target("one sandbox, over bare bash", "ms", 5, _median("sandbox", f"{FORGES[0]}_added_ms")),
    Target("one sandbox, over bare bash: over the fastest peer", "x", 1, _median("sandbox", "to_fastest_peer")),
    Target("200 jobs at once: until all run, over local", "x", 1.1, _crowd_to_local),
    Target("200 jobs at once: private memory for each", "MB", 3, _median("crowd", "private_per_job_mb")),
    Target("10,000 finished jobs: resume over a plain rerun", "x", 1.1, _median("finished", "resume_to_rerun")),
    Target("10,000 files beside the jobs: over none", "x", 1.1, _median("files", "full_to_empty")),
    Target("10,000 files beside the jobs: CPU over none", "x", 1.1, _median("files", "full_to_empty_cpu")),
    Target("10,000 ready jobs: wall over local with greedy", "x", 0.15, _to_scheduler("shell", "greedy")),
    Target("10,000 ready jobs: wall over local with ilp", "x", 0.05, _to_scheduler("shell", "ilp")),
    Target("10,000 ready jobs: time per job over that of 400", "x", 1.5, _median("schedule", "shell_growth_wall_s")),
    Target("10,000 chains of three: wall over local with greedy", "x", 0.15, _to_scheduler("chain", "greedy")),
    Target("10,000 chains of three: wall over local with ilp", "x", 0.05, _to_scheduler("chain", "ilp")),
    Target(
        "10,000 chains of three: time per job over that of 400", "x", 1.5, _median("schedule", "chain_growth_wall_s")
    ),
    Target("chains of three: temporary files over greedy", "x", 1.1, _to_scheduler("chain", "greedy", "temporary")),
    Target("start-up added to Snakemake", "ms", 20, _median("startup", "show_plugin_cpu_ms")),
)
