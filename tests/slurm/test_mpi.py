"""MPI on two nodes: a real Open MPI, started by srun and by mpirun inside Forge's sandbox."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ordinary
from tests.conftest import DEADLINE, Result, command, write_workflow
from tests.slurm import machine
from tests.slurm.cluster import Cluster, Shape, install
from tests.slurm.test_slurm import Session, by_rule

pytestmark = pytest.mark.host

PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int rank, size, sum = 0;
    char name[200];
    FILE *sign;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int own = rank + 1;
    MPI_Allreduce(&own, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("rank %d of %d on %s: sum %d, %s, %s\n", rank, size, getenv("SLURMD_NODENAME"), sum, getenv("TMPDIR"), access("/tmp", W_OK) ? "closed" : "open");
    fflush(stdout);
    if (argc > 1 && !strcmp(argv[1], "fail") && rank == size - 1) exit(7);
    if (argc > 1 && !strcmp(argv[1], "wait")) {
        snprintf(name, sizeof name, "signs/rank.%d", rank);
        sign = fopen(name, "w");
        fprintf(sign, "%d", (int)getpid());
        fclose(sign);
        sleep(1000);
    }
    if (argc > 2 && rank == 1) {
        sign = fopen(argv[2], "w");
        fprintf(sign, "rank 1 wrote it\n");
        fclose(sign);
    }
    MPI_Finalize();
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    install({"mpicc": "openmpi-bin libopenmpi-dev", "cc": "gcc libc6-dev"})
    place = tmp_path_factory.mktemp("mpi")
    (place / "sum.c").write_text(PROGRAM)
    subprocess.run(["mpicc", "sum.c", "-o", "sum"], cwd=place, check=True)
    return place / "sum"


@pytest.fixture(scope="module")
def named() -> Iterator[Cluster]:
    """A cluster whose nodes have their own host names, by which Open MPI tells them apart."""
    with Cluster(Shape(named=True)) as cluster:
        yield cluster


# The rules run one after the other: an ending MPI program removes an empty /tmp/ompi.NODE.UID, and a daemon of mpirun that
# is about to make its directory there would fail. Here both nodes share the /tmp of one machine.
RULES = """
    rule all:
        input: "srun.txt", "mpirun.txt", "fails.txt", "late.txt"
    rule srun:
        output: "srun.txt", "rank.txt"
        resources: mpi="srun", tasks=4, nodes=2, mem_mb=400, runtime=30
        shell: "{resources.mpi} --mpi=pmix PROGRAM write {output[1]} > {output[0]}"
    rule mpirun:
        input: "srun.txt"
        output: "mpirun.txt"
        resources: mpi="mpirun --allow-run-as-root", tasks_per_node=2, nodes=2, mem_mb=400, runtime=30
        shell: "{resources.mpi} PROGRAM > {output}"
    rule fails:
        input: "mpirun.txt"
        output: "fails.txt"
        resources: mpi="srun", tasks_per_node=2, nodes=2, mem_mb=400, runtime=30
        shell: "until [ -s signs/rank.0 ] && [ -s signs/rank.1 ] && [ -s signs/rank.2 ] && [ -s signs/rank.3 ]; do sleep 0.1; done; "
               "{resources.mpi} --mpi=pmix PROGRAM fail > {output}"
    rule late:
        input: "mpirun.txt"
        output: "late.txt"
        resources: mpi="srun", tasks_per_node=2, nodes=2, mem_mb=400, runtime=30
        shell: "echo $SLURM_JOB_ID > signs/late; {resources.mpi} --mpi=pmix PROGRAM wait > {output}"
"""


def alive(pid: str) -> bool:
    return Path(f"/proc/{pid}/exe").exists()


def test_ranks_on_two_nodes(named: Cluster, workdir: Path, program: Path) -> None:
    session = Session(named, workdir)
    write_workflow(workdir, "")
    (workdir / "rank.txt").write_text("of an earlier run")
    (workdir / "sum").write_bytes(program.read_bytes())
    (workdir / "sum").chmod(0o755)
    session.start(RULES.replace("PROGRAM", "./sum"), "--forge-slurm-pack", "50")
    ranks = [session.wait_file(f"signs/rank.{rank}") for rank in range(4)]
    session.wait(lambda: "Error in rule fails" in session.output())
    named.run("scontrol", "update", f"jobid={session.wait_file('signs/late').strip()}", "EndTime=now+1")
    done = session.finish()
    found = by_rule(done)
    outcomes = {rule: attempt["outcome"] for rule, attempt in found.items()}
    assert outcomes == {"srun": "succeeded", "mpirun": "succeeded", "fails": "failed", "late": "timeout"}, done.output
    for rule in ("srun", "mpirun"):
        lines = sorted(done.read(f"{rule}.txt").splitlines())
        assert [line.split(" on ")[0] for line in lines] == [f"rank {rank} of 4" for rank in range(4)]
        assert {line.split(" on ")[1].split(":")[0] for line in lines} == set(named.nodes)
        assert {line.split(": ")[1] for line in lines} == {"sum 10, /tmp, open"}
        assert found[rule]["isolation"]["files"] == "open"
        assert "files" in found[rule]["isolation"]["not_enforced"]
        assert found[rule]["evidence"]["ranks_held_by"] == "Slurm's cgroups"
        assert any("launcher on the first node" in note for note in found[rule]["notes"])
    assert done.read("rank.txt") == "rank 1 wrote it\n", "ranks write in place"
    assert found["mpirun"]["limits"]["cpus"] == 2, "the CPUs of its ranks on the node"
    assert found["fails"]["exit_code"] == 7
    session.wait(lambda: not any(map(alive, ranks)))
    assert done.output.count("rule srun: MPI on") == 1


def test_ranks_of_an_ordinary_user(named: Cluster, program: Path) -> None:
    place = named.root / "user"
    write_workflow(place, RULES.replace("PROGRAM", "./sum").replace(', "fails.txt", "late.txt"', ""))
    (place / "sum").write_bytes(program.read_bytes())
    (place / "sum").chmod(0o755)
    ordinary.hand_over(place)
    shell = [*machine.prefix(named.root, "client"), *ordinary.prefix(), "sh", "-c", 'cd "$0" && HOME=$0 && exec "$@"', str(place)]
    snakemake = command("forge", "--forge-backend", "slurm", "-j", "500", "-k")
    done = subprocess.run([*shell, *snakemake], cwd=Path(__file__).parents[2], env=named.environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stdout
    result = Result(0, done.stdout, place)
    assert {(attempt["rule"], attempt["outcome"]) for attempt in result.attempts() if attempt["backend"] == "slurm"} >= {
        ("srun", "succeeded"), ("mpirun", "succeeded")}
    assert all("user-ns" in attempt["isolation"]["mechanisms"] for attempt in result.attempts("mpirun"))
