"""Slurm jobs of a dead run that may be alive: `snakemake-forge resume` waits for them."""

from __future__ import annotations

from snakemake_executor_plugin_forge.backends.slurm.adoption import run_of
from snakemake_executor_plugin_forge.backends.slurm.parse import parse_squeue

RUN = "20261122-230528-1573-ef85"
QUEUE = f"""\
12|12|N/A|RUNNING|None|2026-11-22T23:05:30|n1|forge-{RUN}.b1
14|13|0|PENDING|Resources|2026-11-22T23:05:30||forge-{RUN}.b2
15|13|1|COMPLETED|None|2026-11-22T23:05:30|n1|forge-{RUN}.b2
16|16|N/A|CANCELLED|None|2026-11-22T23:05:30|n1|forge-{RUN}.b3
17|17|N/A|REQUEUE_HOLD|None|2026-11-22T23:05:30|n1|forge-{RUN}.b4
18|18|N/A|OF_A_LATER_SLURM|None|2026-11-22T23:05:30|n1|forge-{RUN}.b5
19|19|N/A|RUNNING|None|2026-11-22T23:05:30|n1|forge-20261122-230529-1574-0000.b1
20|20|N/A|RUNNING|None|2026-11-22T23:05:30|n1|somebody else's
"""


def test_what_may_live_of_a_run() -> None:
    for run, ids in ((RUN, ["12", "13_0", "17", "18"]), ("20261122-230529-1574-0000", ["19"]), ("another", [])):
        assert [row.job_id for row in parse_squeue(QUEUE) if not row.ended and run_of(row.name) == run] == ids
