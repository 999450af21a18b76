"""The commands, and what each does in one line. Python imports a module only when the user gives its command.

A new command is a line here and a module of that name with ``add_parser(commands)``, which calls
:func:`.select.add_command` and sets ``run``.
"""

from __future__ import annotations

COMMANDS = {
    "init": "write a first forge.yaml and profile, from the Snakefile, this host and earlier runs",
    "doctor": "show what this host lets Forge enforce, and what would change it",
    "runs": "list runs: when, command, outcome, number of jobs, duration",
    "jobs": "list attempts: rule, wildcards, outcome, time, memory",
    "logs": "print the streams of the newest attempt of a job",
    "why": "explain why a job ended as it did, and what to change",
    "shell": "open a prompt in a sandbox like that of a job: its files, limits and environment",
    "audit": "list the files that rules use without declaring them, as lines for the Snakefile",
    "advise": "suggest the resources of rules, from the usage of their jobs",
    "top": "watch a run: jobs done and pending, ETA; of each running job memory, CPU, and newest line of its logs",
    "report": "write one self-contained HTML page about a run, or a table of its attempts",
    "runtimes": "list, build and check the environments of the catalog",
    "metrics": "print OpenMetrics text of all runs, or a dashboard for Grafana",
    "provenance": "write a run as a Workflow Run RO-Crate: which command made which files of which",
    "resume": "continue after a crash or a failure: clear up after dead runs, repeat the recorded command",
    "verify": "find outputs that have changed since their job, and the command that makes them again",
    "slurm": "print the partitions of the cluster with their limits, for --forge-slurm-partitions",
    "gc": "delete old records and leftovers of dead runs, and report the space freed",
    "completion": "print the script that lets a shell complete these commands",
}
