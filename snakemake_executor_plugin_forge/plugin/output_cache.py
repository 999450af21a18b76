"""The between-workflow cache: outputs are fetched before a job is submitted, and stored after its success."""

from __future__ import annotations

from typing import Any

from .snakemake_internals import call_cache


def ask_cache(executor: Any, info: Any, name: str) -> bool:
    """Have the cache ``fetch`` or ``store`` a job's outputs, and report that; False if it does not have them."""
    try:
        if not call_cache(executor.workflow, info.job, name):
            return False
    except Exception as error:
        executor.report_job_error(info, msg=f"the output cache failed: {error}")
    else:
        executor.report_job_success(info)
    return True
