"""How often Snakemake's scheduler looks for jobs that it could start.

After each look it has another one made when the time span of ``--max-jobs-per-timespan`` (100 a second, unless told
otherwise) is over: so what it looks at in a second it looks at in the next one again, and once more for each job that
has ended meanwhile. With jobs of a fraction of a second that is most of what Snakemake does after some seconds: 3,200
looks for 400 jobs in 17 s, 4,000 in 20 s.
"""

from __future__ import annotations

import time
from typing import Any

_SHARE = 0.1  # of the time span: two looks that are nearer to each other are made one


def make_sparse(scheduler: Any) -> None:
    """Have a scheduler look again only if the limit of jobs has been reached: nothing else passes with time.

    What else can change, the end of a job, has it look by itself. Does nothing with a scheduler that works otherwise.
    """
    limiter = getattr(scheduler, "job_rate_limiter", None)
    look_again = getattr(scheduler, "_schedule_reevalutation", None)  # sic
    if limiter is None or look_again is None:
        return
    due = 0.0

    def look_again_if_necessary(delay: float) -> None:
        nonlocal due
        if delay == limiter.timespan:
            wanted = time.monotonic() + delay
            if limiter.get_free_jobs() > 0 or wanted - due < delay * _SHARE:
                return
            due = wanted
        look_again(delay)

    scheduler._schedule_reevalutation = look_again_if_necessary
