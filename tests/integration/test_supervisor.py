"""A supervisor's reports of its own failures, tested without nursery and Snakemake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import DEADLINE

PROGRAM = """
import os, pickle, socket, sys, time
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Order
from snakemake_executor_plugin_forge.workers.pool import ControlChannel
from snakemake_executor_plugin_forge.workers.channel import Channel, Frame, FrameKind
from snakemake_executor_plugin_forge.spec.host import Host
from snakemake_executor_plugin_forge.spec.job import Config, FilePolicy, JobRequest, RunContext
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.sandbox.base import prepare
from snakemake_executor_plugin_forge.sandbox.standby import Standby
from snakemake_executor_plugin_forge.sandbox.filesystem.scratch import ScratchPool
from snakemake_executor_plugin_forge.supervisor import process_group
from snakemake_executor_plugin_forge.supervisor.prepared import Tools
from snakemake_executor_plugin_forge.supervisor.supervisor import supervise

place, fault = sys.argv[1:]
process_group._DEATH_SECONDS = 1e6  # nothing is waited for that does not die: the test would hang

def execute(payload, environment, scratch):
    with open("begun", "w") as file:
        print(os.readlink("/proc/self/ns/pid"), file=file)
    if fault in ("watch", "together"):
        time.sleep(1000)
    return {"exit_code": 0}

base = prepare("root")
host = Host(2**30, 1, "soft", "", "root", "", ())
run = RunContext("run", place, place + "/state", (place,))
request = JobRequest("a", {}, 1, 1, {"tmpdir": place}, None)
spec = plan(request, 1, "true", "nursery", Config(files=FilePolicy.OPEN), host, run)
if fault == "prepare":
    os.mkdir(place + "/forge-run")
    os.makedirs(place + "/forge-run/slot-%d/tmp" % os.getpid())
orders, other_end = socket.socketpair()
if fault == "watch":
    orders = socket.socket()  # never connected: the first look at it is an error
channel = Channel(orders)
if fault == "together":
    order = pickle.dumps(Order(EndedBy.CONTROLLER, "Snakemake died", grace=False))
    other_end.sendall(Frame(FrameKind.RUN, spec.name).encode() + Frame(FrameKind.END, body=order).encode())
    received = channel.receive()
    assert next(received).kind is FrameKind.RUN
class Pool(ScratchPool):
    def take(self, directory):
        scratch = super().take(directory)
        if fault == "begin":  # when there is a process, but no order for it yet
            os.makedirs(scratch.root + "/forge-" + spec.name + "/in the way")
        return scratch
standby = Standby(base, execute, Pool(base.private), as_init=False)
supervise(spec, b"", Tools(None, standby, ControlChannel(channel)), lambda verdict: None)
"""


def _reason(place: Path, fault: str, outcome: str = "failed") -> str:
    """The reason of the attempt's verdict."""
    subprocess.run([sys.executable, "-c", PROGRAM, str(place), fault], check=True, timeout=DEADLINE, cwd=place)
    (path,) = place.glob("state/runs/run/*/verdict.json")
    verdict = json.loads(path.read_text())
    assert verdict["outcome"] == outcome
    reason: str = verdict["reason"]
    return reason


def test_an_order_to_end_that_came_with_the_order_to_start(workdir: Path) -> None:
    """Both orders arrive in one read: no later message would wake the supervisor."""
    assert "Snakemake died" in _reason(workdir, "together", "cancelled")


@pytest.mark.parametrize("fault", ["prepare", "begin"])
def test_an_error_before_the_start(workdir: Path, fault: str) -> None:
    reason = _reason(workdir, fault)
    assert reason.startswith("the sandbox could not be set up, nothing was run: ")
    assert not (workdir / "begun").exists()


def test_an_error_while_the_job_runs(workdir: Path) -> None:
    reason = _reason(workdir, "watch")
    assert reason.startswith("the supervisor failed while the job ran: ")
    assert reason.endswith("; the job was killed")


STANDBY = """
import os, pickle, sys, time
from snakemake_executor_plugin_forge.workers.launcher import Command, execute
from snakemake_executor_plugin_forge.spec.host import Host
from snakemake_executor_plugin_forge.spec.job import Config, FilePolicy, JobRequest, RunContext
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.sandbox.base import prepare
from snakemake_executor_plugin_forge.sandbox.standby import Standby
from snakemake_executor_plugin_forge.sandbox.filesystem.scratch import ScratchPool
from snakemake_executor_plugin_forge.supervisor.prepared import Tools
from snakemake_executor_plugin_forge.supervisor.supervisor import supervise

class Control:
    def __init__(self):
        self.ends = os.pipe()
    def fileno(self):
        return self.ends[0]
    def early(self):
        return None

place, elsewhere = sys.argv[1:]
data = elsewhere + "/data"
os.mkdir(data)
base = prepare("root")
host = Host(2**30, 1, "soft", "", "root", "", ())
run = RunContext("run", place, place + "/state", (place,))
standby = Standby(base, execute, ScratchPool(base.private), as_init=True)
for number in range(1, 7):
    request = JobRequest("a", {}, 1, 1, {"tmpdir": place}, None, (), (data + "/x",))
    spec = plan(request, number, "true", "launcher", Config(files=FilePolicy.OPEN), host, run)
    if number % 2 == 0:
        os.rename(data, data + str(number))
        os.mkdir(data)
    program = f"echo {number} > {data}/{number}"
    verdicts = []
    command = Command("/bin/sh", ("/bin/sh", "-c", program), place, {}, ())
    supervise(spec, pickle.dumps(command), Tools(None, standby, Control()), verdicts.append)
    standby.prepare(spec)
    time.sleep(0.1)  # until it is inside
    assert verdicts[0].ok, verdicts
    assert os.path.exists(f"{data}/{number}"), number
standby.close()
print(os.listdir(place))
"""


def test_a_process_that_waited_is_used_only_where_it_fits(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A recreated directory is a different one, so a sandbox prepared for the old one must not be used."""
    place, elsewhere = tmp_path_factory.mktemp("standby"), tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run([sys.executable, "-c", STANDBY, str(place), str(elsewhere)], check=False, timeout=DEADLINE,
                          cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "forge-run" not in done.stdout
