"""``run:`` blocks of Snakefiles with state: they write the same files as with ``local``, and do not hang."""

from __future__ import annotations

from typing import Any

import pytest

from ..conftest import Result
from ..side_by_side import USERS, Both, Case

pytestmark = pytest.mark.slow  # runs each case with local, too

STATE = """
import multiprocessing, os, random, sqlite3
from concurrent.futures import ThreadPoolExecutor
random.seed(7)
rng = random.Random()
pool = ThreadPoolExecutor(2)
processes = multiprocessing.Pool(1)
squares = list(pool.map(lambda x: x * x, range(4)))
handle = open("handle/lines.txt")
base = sqlite3.connect("base/base.db", timeout=300, check_same_thread=False)  # all begin at once
base.execute("CREATE TABLE IF NOT EXISTS t (x)")
"""


def _differ(name: str) -> Any:
    """Both jobs of a rule drew different random numbers."""
    return lambda result, _: result.read(f"{name}/a.txt") != result.read(f"{name}/b.txt")


def _how(start: str, because: str = "") -> Any:
    def check(_: Result, attempts: list[dict[str, Any]]) -> bool:
        return all(a["how"].startswith(start) and because in a["how"] for a in attempts)

    return check


STATEFUL = [
    Case("drawn", """
        rule @:
            input: "@/a.txt", "@/b.txt"
            output: touch("@/all")
        rule @_one:
            output: "@/{s}.txt"
            run: open(output[0], "w").write(str(rng.random()))
        """, differs=(r"\.txt",), check=_differ("drawn")),
    Case("seeded", """
        rule @:
            output: "@/out.txt"
            run: open(output[0], "w").write(str(random.random()))
        """),
    Case("pool", """
        rule @:
            output: "@/out.txt"
            run: open(output[0], "w").write(str(list(pool.map(lambda x: x + 1, squares))))
        """, check=_how("inner snakemake, because the thread ")),
    Case("shadowed", """
        rule @:
            output: "@/out.txt"
            shadow: "minimal"
            resources: mem_mb=60
            run: open(output[0], "w").write("shadow")
        """, check=lambda _, attempts: not attempts[-1]["undeclared_writes"]),
    Case("handle", """
        rule @:
            input: "@/a.txt", "@/b.txt"
            output: touch("@/all")
        rule @_one:
            output: "@/{s}.txt"
            run: open(output[0], "w").write(handle.readline())
        """, before={"lines.txt": "one\ntwo\n"}),
    Case("base", """
        rule @:
            output: "@/out.txt"
            run:
                base.execute("INSERT INTO t VALUES (1)")
                open(output[0], "w").write(str(base.execute("SELECT count(*) FROM t").fetchall()))
        """, before={"README": ""}),
    Case("script", """
        rule @:
            output: "@/out.txt"
            script: "@/write.py"
        """, before={"write.py": "open(snakemake.output[0], 'w').write('script')"}, check=_how("nursery")),
    Case("forked", """
        rule @:
            output: "@/out.txt"
            resources: forge_run_blocks="fork"
            run: open(output[0], "w").write(str(squares))
        """, check=_how("nursery")),
]  # fmt: skip

NAMES = """
import functools, os, random
STARTED, PLACES = "no", []
def begin():
    global STARTED
    STARTED = "yes"
    PLACES.append(1)
    config["started"] = os.environ["STARTED"] = "yes"
onstart: begin()
NAMES = open("names/made.txt").read().split() if os.path.exists("names/made.txt") else []
@functools.lru_cache
def has_names(): return os.path.exists("names/made.txt")
def source(wildcards): return "plain/source.txt" if not has_names() else "plain/other.txt"
"""

ORDINARY = [
    Case("plain", """
        rule @:
            input: "@/a.txt", "@/b.txt"
            output: touch("@/all")
        rule @_one:
            input: source
            output: "@/{s}.txt"
            run: open(output[0], "w").write(str(random.random()))
        """, before={"source.txt": "", "other.txt": ""}, differs=(r"[ab]\.txt",), check=_differ("plain")),
    Case("started", """
        rule @:
            input: "@/run.txt", "@/script.txt", "@/benchmark.txt"
            output: "@/out.txt"
            shell: "echo {STARTED} {PLACES} {config[started]} $STARTED > {output}"
        rule @_run:
            output: "@/run.txt"
            run: open(output[0], "w").write(f"{STARTED} {PLACES} {'started' in config} {os.environ['STARTED']}")
        rule @_script:
            output: "@/script.txt"
            script: "@/write.py"
        rule @_benchmark:
            output: "@/benchmark.txt"
            benchmark: "@/benchmark.tsv"
            shell: "echo {STARTED} {PLACES} {config[started]} $STARTED > {output}"
        """, before={"write.py": "open(snakemake.output[0], 'w').write(snakemake.config['started'])"},
        differs=(r"\.tsv",)),
    Case("forced", """
        rule @:
            output: "@/out.txt"
            resources: forge_run_blocks="new"
            params: value=42
            run: open(output[0], "w").write(str(params.value))
        """, check=_how("inner snakemake, because forge_run_blocks=new asks for it")),
    Case("added", """
        rule @:
            output: "@/out.txt"
            resources: mem_mb=60
            run:
                with open(output[0], "w") as file: file.write(f"{resources.mem_mb}")
                shell("echo {resources.disk_mb} >> {output}")
        """, check=_how("inner snakemake, because it uses resources.disk_mb, which the rule does not set and Snakemake adds there")),
    Case("names", """
        rule @:
            input: "@/made.txt"
            output: "@/out.txt"
            run: open(output[0], "w").write(str(NAMES) + str(has_names()))
        rule @_made:
            input: "plain/all"
            output: "@/made.txt"
            shell: "echo x y > {output}"
        """, before={"README": ""}),
    Case("left_open", """
        rule @:
            output: "@/named", "@/listed", "@/generated", "@/deleted", "@/finalized", "@/remembered", "@/stdio", "@/collected"
            resources: mem_mb=150
            run:
                import ctypes, logging.handlers, weakref
                global named, generated, deleted
                shell("touch {output}")
                named = open(output[0], "w")
                print("named", file=named)
                PLACES.append(open(output[1], "w"))
                print("listed", file=PLACES[-1])
                def generator():
                    with open(output[2], "w") as file:
                        try:
                            yield
                        finally:
                            print("generated", file=file)
                generated = generator()
                next(generated)
                class Deleted:
                    path, open = output[3], open
                    def __del__(self): self.open(self.path, "a").write("deleted")
                deleted = Deleted()
                weakref.finalize(has_names, lambda: open(output[4], "w").write("finalized"))
                handler = logging.handlers.MemoryHandler(10, target=logging.FileHandler(output[5]))
                logging.getLogger("@").addHandler(handler)
                logging.getLogger("@").warning("remembered")
                library = ctypes.CDLL(None)
                library.fopen.restype = ctypes.c_void_p
                library.fputs(b"stdio", ctypes.c_void_p(library.fopen(output[6].encode(), b"w")))
                for _ in range(5000):
                    cycle = [bytearray(100000)]
                    cycle.append(cycle)
                open(output[7], "w").write("collected")
        """, check=_how("nursery")),
]  # fmt: skip


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both.run(tmp_path_factory.mktemp("stateful"), STATEFUL, user=USERS[-1], head=STATE)


@pytest.mark.parametrize("case", STATEFUL, ids=lambda case: case.name)
def test_a_block_with_state_gives_what_it_gives_with_local(stateful: Both, case: Case) -> None:
    stateful.check(case)
    assert stateful.codes == ((0, 0),)


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both.run(tmp_path_factory.mktemp("ordinary"), ORDINARY, user=USERS[-1], head=NAMES)


@pytest.mark.parametrize("case", ORDINARY, ids=lambda case: case.name)
def test_an_ordinary_block_is_a_fork_until_a_file_of_the_snakefile_changes(ordinary: Both, case: Case) -> None:
    ordinary.check(case)
    assert ordinary.codes == ((0, 0),)
    assert {a["how"] for a in ordinary.forge.attempts("plain_one")} == {"nursery"}
    reason = "because the Snakefile reads names/made.txt, which has changed since"
    assert ordinary.forge.attempt("names")["how"] == f"inner snakemake, {reason}"
    assert ordinary.forge.output.count(f"rule names runs in a Snakemake of its own, {reason}") == 1
