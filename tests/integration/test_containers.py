"""Rules in an image made from Debian packages: podman imports and unpacks it, Forge runs the jobs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.software import container
from snakemake_executor_plugin_forge.software.store import Manifest
from snakemake_executor_plugin_forge.spec.catalog import Runtime, RuntimeKind

from ..conftest import DEADLINE, Result, forge, residue, run, write_workflow

pytestmark = [pytest.mark.busy, pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("podman") or not shutil.which("mmdebstrap"),
    reason="needs root, podman and mmdebstrap: apt-get install podman runc mmdebstrap",
)]

INCLUDE = "dash,bash,coreutils,sed,grep,bedtools"

WORKFLOW = """
rule all:
    input: "inside.txt", "outside.txt", "hungry.txt"
rule in_image:
    input: "data/genes.bed"
    output: "inside.txt"
    params: secret="a 'quoted' word"
    shell:
        "bedtools --version > {output}; grep ^ID= /etc/os-release >> {output}; bedtools sort -i {input} | head -1 >> {output};"
        " echo ${{HOST_VARIABLE-unset}} $FORGE_RUNTIME $GREETING >> {output}; echo x > $TMPDIR/x; cat $TMPDIR/x >> {output};"
        " (touch /usr/bin/new 2>/dev/null && echo writable || echo read-only) >> {output}; ls / | tr '\\\\n' ' ' >> {output}"
rule on_host:
    output: "outside.txt"
    shell: "(command -v bedtools || echo none) > {output}; echo ${{HOST_VARIABLE-unset}} >> {output}"
rule in_hungry:
    output: "hungry.txt"
    shell: "echo half > {output}; head -c 300m /dev/zero | tail -c 300m > /dev/null"
"""

CATALOG = """
version: 1
runtimes:
  bed: {{container: "{image}", env: {{GREETING: hello}}, memory: 100MiB}}
rules: {{"in_*": bed}}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An OCI archive with Debian's bedtools."""
    directory = tmp_path_factory.mktemp("image").resolve()
    tree, archive = directory / "tree.tar", directory / "bed.tar"
    subprocess.run(
        ["mmdebstrap", "--variant=extract", f"--include={INCLUDE}", "--mode=root", "bookworm", str(tree)],
        check=True, capture_output=True, timeout=DEADLINE,
    )
    done = subprocess.run(
        ["podman", "import", "--quiet", "--change", "ENV=IN_IMAGE=yes", str(tree), "forge-test-bed:1"],
        check=True, capture_output=True, text=True, timeout=DEADLINE,
    )
    number = done.stdout.split()[-1]
    try:
        subprocess.run(["podman", "save", "--quiet", "--format", "oci-archive", "-o", str(archive), number],
                       check=True, capture_output=True, timeout=DEADLINE)
    finally:
        subprocess.run(["podman", "rmi", "--force", number], check=False, capture_output=True)
    return f"oci-archive:{archive}"


@pytest.fixture(scope="module")
def place(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("containers").resolve()
    write_workflow(directory, WORKFLOW)
    (directory / "data").mkdir()
    (directory / "data" / "genes.bed").write_text("chr2\t1\t5\nchr1\t7\t9\n")
    (directory / "forge.yaml").write_text(CATALOG.format(image=image))
    return directory


@pytest.fixture(scope="module")
def done(place: Path) -> Result:
    return run(place, "-j2", "-k", "--forge-runtimes-dir", str(place / "store"), env={"HOST_VARIABLE": "seen"})


def test_a_job_runs_in_the_image_and_sees_nothing_of_the_host_but_its_own(done: Result) -> None:
    assert (done.directory / "inside.txt").exists(), done.output
    version, system, first, words, scratch, root, listing = done.read("inside.txt").splitlines()
    assert version.startswith("bedtools v")
    assert system == "ID=debian"
    assert first == "chr1\t7\t9"
    assert words == "unset bed hello"
    assert scratch == "x"
    assert root == "read-only"
    assert "home" in listing.split() or "usr" in listing.split()
    assert done.read("outside.txt") == f"{shutil.which('bedtools') or 'none'}\nseen\n"
    assert residue(done.directory) == []


@pytest.mark.skipif(not shutil.which("bwrap"), reason="apt-get install bubblewrap")
def test_the_command_of_the_record_runs_by_hand(done: Result) -> None:
    before = done.read("inside.txt").splitlines()
    script = Path(done.attempt("in_image")["directory"], "command.sh")
    subprocess.run([script], check=True, timeout=DEADLINE, env=os.environ | {"TMPDIR": "/tmp"})
    assert done.read("inside.txt").splitlines()[:6] == before[:6]


def test_limits_and_verdicts_are_those_of_any_job(done: Result) -> None:
    verdict = done.attempt("in_hungry")
    assert verdict["outcome"] == "oom"
    assert verdict["limits"]["memory_bytes"] == 100 * 1024**2
    assert verdict["runtime"] == "bed"
    assert not (done.directory / "hungry.txt").exists()
    assert done.attempt("in_image")["how"] == "launcher"


def test_the_engine_keeps_nothing_of_an_archive(done: Result) -> None:
    directory = Path(done.attempt("in_image")["directory"])
    (described,) = json.loads((directory.parent / "run.json").read_text())["runtimes"].values()
    images = subprocess.run(["podman", "images", "-q", "--no-trunc"], capture_output=True, text=True, check=True).stdout
    assert described["image"].removeprefix("sha256:") not in images
    assert "forge-" not in subprocess.run(["podman", "ps", "-a"], capture_output=True, text=True, check=True).stdout


def test_the_record_has_the_image(done: Result) -> None:
    directory = Path(done.attempt("in_image")["directory"])
    identity = json.loads((directory / "spec.json").read_text())["runtime_id"]
    described = json.loads((directory.parent / "run.json").read_text())["runtimes"][identity]
    assert described["kind"] == "container"
    assert len(described["image"].removeprefix("sha256:")) == 64
    assert json.loads(described["env"])["IN_IMAGE"] == "yes"


def test_a_damaged_image_is_named_before_the_first_job_and_the_named_command_mends_it(done: Result, place: Path) -> None:
    (root,) = place.glob("store/container-*/env")
    program, link = root / "usr/bin/bedtools", next(p for p in (root / "usr/lib").rglob("*.so.*") if p.is_symlink())
    before = program.stat()
    with program.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(program, ns=(before.st_atime_ns, before.st_mtime_ns))
    link.unlink()
    result = run(place, "-j1", "-f", "inside.txt", "--forge-runtimes-dir", str(place / "store"))
    assert result.code != 0
    assert f"{program} is not as it was installed: its checksum is another one" in result.output
    assert f"{link} is missing" in result.output
    command = f"snakemake-forge runtimes check bed --repair --runtimes-dir {place}/store"
    assert f"Repair it with: {command}" in result.output
    assert len(done.attempts("in_image")) == 1
    mended = forge(place, *command.split()[1:])
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "bed               container  sound" in mended.stdout
    assert "bed               container  sound     -" not in mended.stdout  # its files were read


def test_a_name_that_means_another_image_than_the_one_unpacked_is_named(tmp_path: Path) -> None:
    name = f"localhost/forge-test-{os.getpid()}:1"
    runtime = Runtime("named", RuntimeKind.CONTAINER, name)
    (tmp_path / "tree").mkdir()

    def give(text: str) -> str:
        (tmp_path / "tree/words").write_text(text)
        subprocess.run(["tar", "-cf", tmp_path / "t.tar", "-C", tmp_path / "tree", "."], check=True)
        return subprocess.run(["podman", "import", "--quiet", tmp_path / "t.tar", name], check=True, capture_output=True,
                              text=True, timeout=DEADLINE).stdout.split()[-1].removeprefix("sha256:")

    images = [give("one")]
    try:
        _, details = container.make(runtime, str(tmp_path / "env"), lambda _: None)
        manifest = Manifest("x", RuntimeKind.CONTAINER, name, str(tmp_path / "env"), {}, "", details)
        assert container.replaced(runtime, manifest) is None
        images.append(give("two"))
        problem = container.replaced(runtime, manifest)
        assert str(problem) == (f"{name} was replaced at its source: to podman it is now {images[1][:12]}, and {images[0][:12]} was "
                                "unpacked")
    finally:
        subprocess.run(["podman", "rmi", "--force", *images], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("run: pass", ["has run:, script:", "gets the runtime bed"]),
        ("conda: 'x.yaml'\n    shell: 'true'", ["has conda: of its own", "Neither can run inside the other"]),
    ],
)
def test_what_no_image_can_do_is_refused_with_the_reason(
    workdir: Path, image: str, place: Path, done: Result, body: str, words: list[str]
) -> None:
    write_workflow(workdir, f"rule in_a:\n    output: 'a.txt'\n    {body}\n")
    (workdir / "x.yaml").write_text("channels: []\ndependencies: []\n")
    (workdir / "forge.yaml").write_text(CATALOG.format(image=image))
    from ..conda import stand_in

    path = f"{stand_in.install(workdir / 'base')}{os.pathsep}{os.environ['PATH']}"
    result = run(workdir, "-j2", "--forge-runtimes-dir", str(place / "store"), "--sdm", "conda", env={"PATH": path})
    assert result.code != 0
    for word in words:
        assert word in result.output
    assert residue(workdir) == []
