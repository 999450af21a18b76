"""The commands and what each does in a line. A module is imported only when its command is asked for.

A new command is a line here and a module of that name with ``add_parser(commands)``, which calls
:func:`.select.add_command` and sets ``run``.
"""

from __future__ import annotations

COMMANDS = {
    "doctor": "what this host lets Forge enforce, and what would change it",
    "jobs": "list attempts: rule, wildcards, outcome, time, memory",
    "logs": "the streams of the newest attempt of a job",
    "why": "why a job ended as it did, and what to change",
    "shell": "a prompt in a sandbox like that of a job: its files, limits and environment",
    "audit": "what rules read and write without declaring it, as lines for the Snakefile",
    "advise": "what rules should ask for, from what their jobs used",
    "top": "running jobs, live: memory and CPU against their limits, newest line of their logs",
    "report": "one self-contained HTML page about a run",
    "runtimes": "the environments of the catalog: list, build, check",
    "metrics": "OpenMetrics text of all runs; a dashboard for Grafana",
    "provenance": "a run as a Workflow Run RO-Crate: what was made of what, by which command",
    "resume": "go on after a crash or a failure: clear what is stale, repeat the recorded command",
    "verify": "outputs that are not what was published, and the command that makes them again",
    "gc": "give up old records and leftovers of dead runs, and say how much that freed",
    "completion": "the script that lets a shell complete these commands",
}
