"""The evidence against a fork for ``run:`` blocks: many Snakefiles, read by Snakemake in one process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

from snakemake_executor_plugin_forge.plugin import run_blocks
from snakemake_executor_plugin_forge.spec.errors import UsageError
from snakemake_executor_plugin_forge.spec.job import RunBlocks
from snakemake_executor_plugin_forge.spec.run_blocks import Difference, DifferenceKind, mode_of, why_new

# The last cases leave evidence in the process.
CASES: dict[str, tuple[str, set[str]]] = {
    "ordinary": ("""
import functools, io, logging, random, time
from pathlib import Path
with open("here.txt") as file: LINES = file.read().split()
FOUND = glob_wildcards("raw/{s}.txt").s
if not Path("logs").exists(): Path("logs").mkdir()
@functools.lru_cache
def cached(x): return x
try: import numpy as np
except ImportError: pass
cached(1); text = io.StringIO("x"); log = logging.getLogger("x")
class Sample:
    def __init__(self, name): self.name, self.when = name, 1.0
SAMPLES = {name: Sample(name) for name in FOUND}
def draw(): return random.random() + np.random.rand() + time.time()
""", set()),
    "generator": ("import numpy as np\nrng = np.random.default_rng(1)", {"OBJECT", "MOMENT"}),
    "state": ("from numpy.random import RandomState\nrng = RandomState(1)", {"OBJECT"}),
    "nested": ("import random\nclass A:\n    def __init__(self): self.r = {'x': [random.Random(1)]}\na = A()", {"OBJECT"}),
    "class": ("import random\nclass A:\n    r = random.Random(1)", {"OBJECT"}),
    "closure": ("import random\ndef make():\n    r = random.Random(1)\n    return lambda: r\nf = make()", {"OBJECT"}),
    "helper": ("import helper_with_state", {"OBJECT"}),
    "from": ("from helper_with_state import draw", {"OBJECT"}),
    "iterator": ("numbers = iter(range(9))", {"OBJECT"}),
    "file": ("file = open('here.txt')", {"OBJECT", "DESCRIPTOR"}),
    "descriptor": ("import os\nnumber = os.open('here.txt', os.O_RDONLY)", {"DESCRIPTOR"}),
    "sqlite": ("import sqlite3\nbase = sqlite3.connect(':memory:')", {"OBJECT"}),
    "socket": ("import socket\npair = socket.socketpair()", {"OBJECT", "DESCRIPTOR"}),
    "shared": ("from multiprocessing import Value\ncount = Value('i', 0)", {"OBJECT", "DESCRIPTOR"}),
    "executor": ("from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)", {"OBJECT"}),
    "time": ("import time\nnow_ = time.time()", {"OBJECT"}),
    "pid": ("import os\npid = f'{os.getpid()}'", {"MOMENT"}),
    "stamp": ("import time\ndef stamp(): return time.strftime('%s')\nx = stamp()", {"MOMENT"}),
    "uuids": ("from uuid import uuid4\nids = [str(uuid4()) for _ in 'ab']", {"MOMENT"}),
    "seeded": ("import random\nrandom.seed(1)", {"RANDOM"}),
    "drawn": ("import random\nname = str(random.random())", {"RANDOM"}),
    "changed": ("C = {}\ndef use(): return C\ndef change(): C['a'] = 1", {"CHANGED"}),
    "unused": ("U = {}\ndef change(): U['a'] = 1", set()),
    "global": ("C = 1\ndef use(): return C\ndef change():\n    global C\n    C = 2000", {"CHANGED"}),
    "read": ("N = open('here.txt').read()\ndef later(): open('here.txt', 'w').write('new')", {"STALE"}),
    "absent": ("import os\nN = os.path.exists('made.txt')\ndef later(): open('made.txt', 'w').close()", {"STALE"}),
    "pathlib": ("from pathlib import Path\nN = Path('p.txt').exists()\ndef later(): Path('p.txt').touch()", {"STALE"}),
    "listed": ("import os\nN = os.listdir('raw')\ndef later(): open('raw/x', 'w').close()", {"STALE"}),
    "unlisted": ("N = glob_wildcards('raw/{s}.txt')\ndef later(): open('raw/y', 'w').close()", set()),
    "globbed": ("N = glob_wildcards('raw/{s}.txt')\ndef later(): open('raw/z.txt', 'w').close()", {"STALE"}),
    "command": ("shell('touch t.txt')\ndef later(): open('t.txt', 'w').write('x')", set()),  # it may write the file
    "module": ("module m:\n    snakefile: 'module.smk'\nuse rule * from m", {"OBJECT"}),
    "numpy": ("import numpy as np\nnp.random.seed(1)", {"RANDOM"}),
    "thread": ("""
from concurrent.futures import ThreadPoolExecutor
p = ThreadPoolExecutor(1)
N = list(p.map(abs, [1]))
""", {"OBJECT", "THREAD", "RANDOM"}),
    "native": ("""
import ctypes
c = ctypes.CDLL(None)
c.pthread_create(ctypes.byref(ctypes.c_ulong()), None, c.pause, None)
""", {"THREAD", "RANDOM"}),
}  # fmt: skip
if importlib.util.find_spec("numpy") is None:
    CASES = {name: case for name, case in CASES.items() if "numpy" not in case[0] or name == "ordinary"}

PROGRAM = """
import json, os, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, Quietness, ResourceSettings
from snakemake_executor_plugin_forge.plugin import parsing
from snakemake_executor_plugin_forge.plugin.run_blocks import RunBlockStarts
from snakemake_executor_plugin_forge.spec.job import RunBlocks

found = {}
for name in sys.argv[1:]:
    parsing.begin()
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(resource_settings=ResourceSettings(cores=1), snakefile=Path(name))._workflow
        parsing.ended()
        workflow.globals.get("change", int)()
        starts = RunBlockStarts(workflow, RunBlocks.AUTO, print)
        rule = next(rule for rule in workflow.rules if rule.name.startswith("b"))
        early = {d.kind.name for d in starts._differences(rule, ())}
        workflow.globals.get("later", int)()
        found[name] = sorted(early | {d.kind.name for d in starts._differences(rule, ())})
        for name in list(workflow.globals):
            if name not in workflow.vanilla_globals:
                del workflow.globals[name]
print(json.dumps(found), flush=True)
os._exit(0 if os.stat.__module__ == "posix" else 3)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    place = tmp_path_factory.mktemp("snakefiles")
    (place / "raw").mkdir()
    (place / "raw" / "a.txt").touch()
    (place / "here.txt").write_text("a b")
    (place / "helper_with_state.py").write_text("import random\nr = random.Random(1)\ndef draw(): return r.random()")
    (place / "module.smk").write_text("rng = iter('abc')\nrule b2:\n    output: 'm'\n    run: print(rng)\n")
    for name, (head, _) in CASES.items():
        block = "" if name == "module" else f"rule b_{name}:\n    output: 'out'\n    run: print(use() if 'use' in globals() else 1)\n"
        (place / name).write_text(f"{head}\n{block}")
    done = subprocess.run([sys.executable, "-c", PROGRAM, *CASES], cwd=place, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return {name: set(kinds) for name, kinds in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.parametrize("name", CASES)
def test_the_evidence_is_found(found: dict[str, set[str]], name: str) -> None:
    assert found[name] == CASES[name][1]


def test_a_rule_overrides_the_run_and_a_setting_overrides_evidence() -> None:
    evidence = [Difference(DifferenceKind.RANDOM, "random")]
    assert mode_of("a", {}, RunBlocks.FORK) == (RunBlocks.FORK, "--forge-run-blocks=fork")
    assert mode_of("a", {"forge_run_blocks": "new"}, RunBlocks.FORK) == (RunBlocks.NEW, "forge_run_blocks=new")
    assert why_new(RunBlocks.FORK, "", evidence) is None
    assert why_new(RunBlocks.AUTO, "", []) is None
    assert why_new(RunBlocks.AUTO, "", evidence) == evidence[0]
    assert str(why_new(RunBlocks.NEW, "forge_run_blocks=new", [])) == "forge_run_blocks=new asks for it"
    with pytest.raises(UsageError, match="Rule a: resource forge_run_blocks='old' is not one of auto, fork, new"):
        mode_of("a", {"forge_run_blocks": "old"}, RunBlocks.AUTO)


def _named(resources: Any) -> None:
    print(resources.mem_mb, [resources["disk_mb"] for _ in "x"], "{resources.mem}")


def _unrelated(disk: Any) -> None:
    print(disk.mem_mb, "disk_mb", "the resources that it has")


def test_resources_that_a_block_names() -> None:
    assert run_blocks._added_resources(_named) == ["mem_mb", "mem", "disk_mb"]
    assert run_blocks._added_resources(_unrelated) == []
