"""The names of the files of an attempt, for readers that do not need what writes them: docs/reference/record.md."""

from __future__ import annotations

STDOUT, STDERR = "stdout.log", "stderr.log"
SPEC, VERDICT, EVENTS, COMMAND = "spec.json", "verdict.json", "events.jsonl", "command.sh"
STAGED = "staged.json"
"""What a job has written that waits for a run: staged.py."""
CLOSED = "slurm/closed"
"""In the directory of a run: nothing of it can publish any more, and nothing of it runs on a node."""
ADOPTABLE = "adoptable"
"""In a state directory: an entry for each job that goes on, or waits, without its Snakemake."""
