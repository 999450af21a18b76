"""The parts of a benchmark as data: executors, sizes of the cases, and settings of a call."""

import importlib.util
from dataclasses import dataclass

LOCAL = "local"
CLUSTER = "cluster-generic"
FORGE = "forge"


@dataclass(frozen=True)
class Executor:
    """One executor: its name, its command line and its cases.

    ``max_jobs`` caps the number of jobs of a case (a slow executor is compared per job), and ``cases``, if
    given, names the only cases it takes part in.
    """

    name: str
    args: tuple[str, ...]
    plugin: str | None = None
    max_jobs: int | None = None
    cases: frozenset[str] | None = None
    scheduler: str = "greedy"

    def available(self) -> bool:
        """Whether the Python that runs the benchmark can import the executor's plugin."""
        return self.plugin is None or importlib.util.find_spec(self.plugin) is not None

    def takes_part_in(self, case: str) -> bool:
        """Whether this executor is measured in the case."""
        return self.cases is None or case in self.cases

    def jobs(self, wanted: int) -> int:
        """Return the number of jobs this executor runs where the others run ``wanted``."""
        return wanted if self.max_jobs is None else min(wanted, self.max_jobs)


EXECUTORS = {
    executor.name: executor
    for executor in (
        Executor(name=LOCAL, args=("--executor", "local")),
        Executor(
            name=CLUSTER,
            # `bash` as the submit command runs the job script on the spot; 1 s is the shortest polling
            # interval that Snakemake takes, its default of 10 s would measure waiting.
            args=(
                *("--executor", "cluster-generic"),
                *("--cluster-generic-submit-cmd", "bash"),
                *("--seconds-between-status-checks", "1"),
            ),
            plugin="snakemake_executor_plugin_cluster_generic",
            max_jobs=10,
            cases=frozenset({"shell", "run", "script", "startup"}),
        ),
        Executor(name=FORGE, args=("--executor", "forge"), plugin="snakemake_executor_plugin_forge"),
    )
}


@dataclass(frozen=True)
class Sizes:
    """The size of each case."""

    shell: int = 400
    run: int = 40
    script: int = 40
    heavy_megabytes: int = 120
    dag: int = 10_000
    activation: int = 200
    attempts: int = 10_000
    dag_run: int = 200
    sleepers: int = 8
    sleep_seconds: int = 20
    start_pairs: int = 21
    crowd: int = 200
    crowd_seconds: int = 60
    sandboxes: int = 20
    finished: int = 10_000
    file_jobs: int = 100
    files: int = 10_000
    schedule: int = 10_000
    schedule_greedy: tuple[int, int] = (1000, 4000)
    schedule_ilp: tuple[int, int] = (500, 2000)


FULL = Sizes()
QUICK = Sizes(  # noqa: S604 - `shell` is the name of a case
    shell=40,
    run=4,
    script=4,
    heavy_megabytes=10,
    dag=500,
    activation=40,
    attempts=500,
    dag_run=20,
    sleepers=4,
    sleep_seconds=10,
    start_pairs=5,
    crowd=10,
    crowd_seconds=10,
    sandboxes=3,
    finished=100,
    file_jobs=10,
    files=500,
    schedule=400,
    schedule_greedy=(100, 200),
    schedule_ilp=(50, 100),
)


@dataclass(frozen=True)
class Settings:
    """One call of the benchmark."""

    sizes: Sizes
    cores: int = 2
    rounds: int = 3
    timeout: float = 1800.0
