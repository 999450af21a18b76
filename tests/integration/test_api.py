"""Snakemake's Python API: many workflows in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ..conftest import DEADLINE, residue, write_workflow

PROGRAM = """
import asyncio, gc, logging, os, resource, signal, socket, sys, threading
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, Quietness, ResourceSettings
from snakemake_executor_plugin_forge import ExecutorSettings

kept = [socket.socketpair() for _ in range(15)]  # with numbers that Forge's own files would get in its processes
for end in (end for pair in kept for end in pair):
    logging.getLogger().addHandler(logging.StreamHandler(end.makefile("w")))
resource.setrlimit(resource.RLIMIT_NOFILE, (600, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
kept += [(open("Snakefile"), open("/dev/null", "w")) for _ in range(200)]

class Kept(logging.Handler):
    process = os.getpid()
    def emit(self, record):
        if os.getpid() != self.process: os.write(2, b"by a handler of the program")

class Writer:  # without flush()
    def write(self, text): return sys.__stdout__.write(text)

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass

def run(number):
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        resources, directory = ResourceSettings(cores=2), Path(f"run{number}")
        workflow = api.workflow(resource_settings=resources, snakefile=Path("Snakefile"), workdir=directory)
        workflow.dag().execute_workflow(executor="forge", executor_settings=ExecutorSettings() if number else None)

def state(): return [signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGHUP), signal.pthread_sigmask(signal.SIG_BLOCK, ()), gc.get_freeze_count()]

def at_end(*_):
    if os.getpid() != Kept.process: os.write(2, b"by a hook of the program")

threading._register_atexit(at_end)
gc.callbacks.append(at_end)

async def run_in_thread(number):
    await asyncio.get_running_loop().run_in_executor(None, run, number)

signal.signal(signal.SIGHUP, reap)
for number in range(4):
    if number == 1:
        logging.getLogger().addHandler(Kept())
        sys.stdout = Writer()
        signal.signal(signal.SIGCHLD, reap)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    elif number == 2:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    before = state()
    if number == 3:
        asyncio.run(run_in_thread(number))
    else:
        run(number)
    assert state() == before, (before, state())
    print(len(os.listdir("/proc/self/fd")))
with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:  # not with Forge, which would refuse it
    workflow = api.workflow(resource_settings=ResourceSettings(cores=2), snakefile=Path("Large"))
    workflow.dag().execute_workflow(executor="dryrun")
sys.stdout = sys.__stdout__
"""


def test_a_run_leaves_the_program_as_it_was_and_its_jobs_have_nothing_of_it(workdir: Path) -> None:
    write_workflow(workdir, """
        rule all:
            input: "a.txt", "b.txt"
        rule a:
            output: "a.txt"
            shadow: "minimal"  # Snakemake logs when it renders the command
            shell: "echo a > {output}"
        rule b:
            output: "b.txt"
            run:
                import logging, sys
                assert sys.stdout.errors == "surrogateescape", "a new Python takes any text in the locale C"
                kept = [open("/dev/null") for _ in range(300)]  # of 600, of which the program has 400
                with open(output[0], "w") as file:
                    file.write("b")
                    logging.warning("not into the output")
        """)
    (workdir / "Large").write_text('rule a:\n    output: "x"\n    resources: mem_mb=10**9\n    shell: "true"\n')
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=workdir, capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=DEADLINE, env=os.environ | {"LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    assert not set(done.stderr.splitlines()) - {"WARNING:root:not into the output"}, done.stderr
    for number in range(4):
        assert (workdir / f"run{number}" / "b.txt").read_text() == "b"
        assert residue(workdir / f"run{number}") == []
    counts = [int(line) for line in done.stdout.split()]
    assert len(counts) == 4
    assert len(set(counts)) == 1, counts
