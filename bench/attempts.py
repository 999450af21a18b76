"""Sandboxes one after the other, as a supervisor makes them, without Snakemake, in a program of its own that forks.

    python -m bench.attempts sandbox|attempt|bash COUNT

It uses the working directory. ``sandbox``: cgroup, namespaces, mounts and layer, the command and its end, removal of
all. ``attempt``: the sandbox with a record, and checked, published and synced outputs. ``bash``: the command alone.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator

from snakemake_executor_plugin_forge.sandbox.base import prepare
from snakemake_executor_plugin_forge.sandbox.cgroups.base import RunCgroup, remove_patiently
from snakemake_executor_plugin_forge.sandbox.filesystem.scratch import ScratchPool
from snakemake_executor_plugin_forge.sandbox.privileges import Bounds
from snakemake_executor_plugin_forge.sandbox.standby import Standby
from snakemake_executor_plugin_forge.spec.host import Host
from snakemake_executor_plugin_forge.spec.job import ORDINARY, Config, JobRequest, LaunchSpec, RunContext, Target
from snakemake_executor_plugin_forge.spec.paths import CHECKPOINTS, RUNS, run_name
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.spec.verdict import Verdict
from snakemake_executor_plugin_forge.supervisor.prepared import Tools
from snakemake_executor_plugin_forge.supervisor.supervisor import supervise
from snakemake_executor_plugin_forge.workers.channel import Channel
from snakemake_executor_plugin_forge.workers.launcher import Command, execute
from snakemake_executor_plugin_forge.workers.pool import ControlChannel

BASH = "/bin/bash"
WARM = 3  # the first ones make things that later ones reuse


def main(kind: str, count: int) -> None:
    """Print the median of their seconds as JSON."""
    gc.disable()  # as in the launcher, which forks supervisors
    gc.freeze()
    walls = [took for _, took in zip(range(count + WARM), _each(kind), strict=False)]
    middle = sorted(walls[WARM:])[count // 2]  # statistics imports random, which each fork would seed again
    print(json.dumps({"wall_s": middle}), flush=True)


def _each(kind: str) -> Iterator[float]:
    once, close = _bash() if kind == "bash" else _forge(kind)
    try:
        while True:
            begin = time.perf_counter()
            once()
            yield time.perf_counter() - begin
    finally:
        close()


def _bash() -> tuple[Callable[[], None], Callable[[], None]]:
    def once() -> None:
        os.waitpid(os.posix_spawn(BASH, (BASH, "-c", ": > out.txt"), os.environ), 0)

    return once, lambda: None


def _forge(kind: str) -> tuple[Callable[[], None], Callable[[], None]]:
    place = os.path.realpath(".")
    context = RunContext("bench", place, f"{place}/.snakemake/forge", (place,))
    for name in (CHECKPOINTS, RUNS):  # mount points
        os.makedirs(f"{place}/{name}")
    host, group = _probed(place)
    base = prepare(host.namespaces)
    standby = Standby(base, execute, ScratchPool(base.private), as_init=True, has_template=True)
    orders, other_end = socket.socketpair()
    tools = Tools(group, standby, ControlChannel(Channel(orders)))
    payload = pickle.dumps(Command(BASH, (BASH, "-c", ": > out.txt"), place, {}, ()))
    number = 0

    def once() -> None:
        nonlocal number
        number += 1
        spec = _spec(number, place, host, context)
        if kind == "attempt":
            verdicts: list[Verdict] = []
            supervise(spec, payload, tools, verdicts.append)
            assert verdicts[0].ok, verdicts
        else:
            _sandbox(spec, payload, tools)
        standby.prepare(spec)
        group.prepare()

    def close() -> None:
        other_end.close()
        standby.close()
        group.release()
        group.remove()

    return once, close


def _probed(place: str) -> tuple[Host, RunCgroup]:
    """Probe the host in another process, as the nursery does: this needs modules that no launcher has."""
    answer, told = os.pipe()
    if os.fork() == 0:
        from snakemake_executor_plugin_forge.sandbox.probe import probe_host

        probe = probe_host(run_name("bench"), place, 2**32, None, ORDINARY, ())
        os.write(told, pickle.dumps((probe.host, probe.group)))
        os._exit(0)
    os.close(told)
    with open(answer, "rb") as file:
        found: tuple[Host, RunCgroup] = pickle.load(file)
    os.wait()
    return found


def _spec(number: int, place: str, host: Host, context: RunContext) -> LaunchSpec:
    target = Target(f"{place}/out.txt", "out.txt")
    request = JobRequest("a", {}, 1, 1, {"mem_mb": 500}, None, outputs=("out.txt",), targets=(target,))
    return plan(request, number, "true", "launcher", Config(), host, context)


def _sandbox(spec: LaunchSpec, payload: bytes, tools: Tools) -> None:
    assert tools.group is not None
    cgroup = tools.group.create_job(spec.name, spec.limits, spec.cpu_mode)
    inside = tools.standby.take(spec)
    inside.scratch.begin(spec.name)
    inside.stage(spec.files)
    files = cgroup.open_procs(inside.started.holder)
    inside.order(payload, spec.environment, Bounds(None, None), spec.files.mounted_inputs, None, files)
    for fd in files:
        os.close(fd)
    said = b""
    while not said.endswith(b"\n") and select.select([inside.result_fd], [], [])[0]:
        said += os.read(inside.result_fd, 65536)
    assert json.loads(said).get("exit_code") == 0, said
    cgroup.counters()
    inside.kill()
    assert remove_patiently(cgroup.remove)
    tools.standby.clear_up(inside.scratch, inside.layers, spec.exposed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
