"""All of Forge that a run needs, imported when it starts: later, the workflow could have a module of the same name.

See kernel/imports.py. What only a few runs need is imported when they do.
"""

from __future__ import annotations

from snakemake_scheduler_plugin_forge.snakemake_internals import ChoosingTime, mend

from ..analysis import explain
from ..analysis.crates import check_store, leave_crate
from ..analysis.failures import Failures
from ..analysis.notes import Notes
from ..run.engine import Engine, RunRequest
from ..run.resource_checks import RefusedError
from ..spec.catalog import with_defaults
from .config import to_config
from .connected_jobs import ConnectedJobs
from .dry_run import leave_dry_runs
from .left_modules import left_modules
from .run_blocks import RunBlockStarts
from .run_plan import RunPlan
from .run_wrapper import CallRunner
from .settings import ExecutorSettings
from .snakemake_internals import forget_failures, protect_only_own
from .software import Deployment
from .stop_signals import StopSignals
from .submission import Submitter, ask_cache

__all__ = [
    "CallRunner",
    "ChoosingTime",
    "ConnectedJobs",
    "Deployment",
    "Engine",
    "ExecutorSettings",
    "Failures",
    "Notes",
    "RefusedError",
    "RunBlockStarts",
    "RunPlan",
    "RunRequest",
    "StopSignals",
    "Submitter",
    "ask_cache",
    "check_store",
    "explain",
    "forget_failures",
    "leave_crate",
    "leave_dry_runs",
    "left_modules",
    "mend",
    "protect_only_own",
    "to_config",
    "with_defaults",
]
