"""Images unpacked by other engines than root's podman: a real dockerd with its own directories, and a rootless podman."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import DEADLINE, Result, command, residue, run, write_workflow
from ..programs import need

pytestmark = [
    pytest.mark.busy,
    pytest.mark.skipif(os.geteuid() != 0, reason="starts a dockerd, and becomes an ordinary user: root alone can"),
]

INCLUDE = "dash,bash,coreutils,sed"
WORKFLOW = """
rule all:
    input: "inside.txt", "hungry.txt"
rule in_image:
    output: "inside.txt"
    shell:
        "sed -n s/^ID=//p /etc/os-release > {output}; echo $GREETING $FORGE_RUNTIME >> {output}; id -u >> {output};"
        " (touch /usr/bin/new 2>/dev/null && echo writable || echo read-only) >> {output}; [ -e /opt/forge-dev -o -e /work ] || echo no host >> {output}"
rule in_hungry:
    output: "hungry.txt"
    shell: "echo half > {output}; head -c 300m /dev/zero | tail -c 300m > /dev/null"
"""
CATALOG = 'version: 1\nruntimes:\n  deb: {container: "IMAGE", memory: 100MiB}\nrules: {"in_*": deb}\n'


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system made from Debian packages."""
    need("mmdebstrap", "mmdebstrap")
    tree = tmp_path_factory.mktemp("tree").resolve() / "tree.tar"
    subprocess.run(
        ["mmdebstrap", "--variant=extract", f"--include={INCLUDE}", "--mode=root", "bookworm", str(tree)],
        check=True, capture_output=True, timeout=DEADLINE,
    )
    return tree


def only(engine: str, directory: Path, program: str) -> str:
    """A PATH with all programs of the present one except other engines that could unpack an image."""
    directory.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for name in os.listdir(place) if os.path.isdir(place) else ():
            if not name.startswith(("podman", "docker", "apptainer", "singularity")) and not os.path.lexists(directory / name):
                (directory / name).symlink_to(f"{place}/{name}")
    (directory / engine).symlink_to(program)
    return str(directory)


# -- docker ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A daemon of this test, and the environment in which docker is the only engine."""
    daemon, client = need("dockerd", "docker.io"), "/usr/bin/docker"  # the same package has both
    place = tmp_path_factory.mktemp("docker").resolve()
    address = f"unix://{place}/docker.sock"
    words = [daemon, "--data-root", f"{place}/data", "--exec-root", f"{place}/exec", "--pidfile", f"{place}/pid",
             "--host", address, "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    environment = {"DOCKER_HOST": address, "PATH": only("docker", place / "bin", client)}
    try:
        deadline = time.monotonic() + DEADLINE
        while _docker(environment, "info").returncode != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not run here: {(place / 'log').read_text()[-500:]}")
            time.sleep(0.2)
        yield environment
    finally:
        process.terminate()  # dockerd then ends its containerd
        process.wait(DEADLINE)


def _docker(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def name(docker: dict[str, str], tree: Path) -> str:
    done = _docker(docker, "import", "--change", "ENV GREETING=hello", str(tree), "forge-test-deb:1")
    assert done.returncode == 0, done.stderr
    return "forge-test-deb:1"


def _check(result: Result, user: int) -> None:
    assert (result.directory / "inside.txt").exists(), result.output
    assert result.read("inside.txt").splitlines() == ["debian", "hello deb", str(user), "read-only", "no host"]
    assert not (result.directory / "hungry.txt").exists()
    assert result.attempt("in_hungry")["outcome"] == "oom"
    assert residue(result.directory) == []


def _described(result: Result) -> dict[str, str]:
    directory = Path(result.attempt("in_image")["directory"])
    (described,) = json.loads((directory.parent / "run.json").read_text())["runtimes"].values()
    found: dict[str, str] = described
    return found


@pytest.mark.parametrize("kind", ["name", "archive"])
def test_docker(docker: dict[str, str], name: str, workdir: Path, kind: str) -> None:
    source = name
    if kind == "archive":
        source = f"docker-archive:{workdir}/deb.tar"
        assert _docker(docker, "tag", name, "forge-test-saved:1").returncode == 0
        assert _docker(docker, "save", "--output", f"{workdir}/deb.tar", "forge-test-saved:1").returncode == 0
        assert _docker(docker, "rmi", "forge-test-saved:1").returncode == 0
    write_workflow(workdir, WORKFLOW)
    (workdir / "forge.yaml").write_text(CATALOG.replace("IMAGE", source))
    _check(run(workdir, "-j2", "-k", "--forge-runtimes-dir", str(workdir / "store"), env=docker), 0)
    described = _described(Result(0, "", workdir))
    assert (described["engine"], json.loads(described["env"])["GREETING"]) == ("docker", "hello")
    assert _docker(docker, "ps", "--all", "--quiet").stdout == ""
    assert "forge-test-deb" in _docker(docker, "images").stdout  # earlier images are still there
    assert "forge-test-saved" not in _docker(docker, "images").stdout  # Forge has removed the archive's


def test_an_archive_that_docker_cannot_load_is_refused_with_the_way_out(docker: dict[str, str], workdir: Path) -> None:
    (workdir / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    (workdir / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    subprocess.run(["tar", "-cf", "x.tar", "index.json", "oci-layout"], cwd=workdir, check=True)
    write_workflow(workdir, WORKFLOW)
    (workdir / "forge.yaml").write_text(CATALOG.replace("IMAGE", "oci-archive:x.tar"))
    result = run(workdir, "-j2", "--forge-runtimes-dir", str(workdir / "store"), env=docker)
    assert result.code != 0
    assert "docker can load OCI archives from version 25 on" in result.output
    assert "docker-archive:" in result.output
    assert not (workdir / "inside.txt").exists()


# -- apptainer ---------------------------------------------------------------------------------------------------------


@pytest.mark.apptainer
def test_apptainer(tree: Path, workdir: Path) -> None:
    """An apptainer image stores its environment as scripts, which only apptainer itself can run."""
    make_archive(tree, workdir / "deb.tar")
    programs = only("apptainer", workdir / "bin", str(shutil.which("apptainer")))
    write_workflow(workdir, WORKFLOW)
    (workdir / "forge.yaml").write_text(CATALOG.replace("IMAGE", f"docker-archive:{workdir}/deb.tar"))
    _check(run(workdir, "-j2", "-k", "--forge-runtimes-dir", str(workdir / "store"), env={"PATH": programs}), 0)
    described = _described(Result(0, "", workdir))
    assert described["engine"] == "apptainer"
    env = json.loads(described["env"])
    assert env["GREETING"] == "hello"
    assert not [name for name in env if name.startswith(("APPTAINER", "SINGULARITY")) or name in {"HOME", "PWD", "PS1"}]


@pytest.mark.apptainer
def test_a_rules_own_container_is_snakemakes_to_start(tree: Path, workdir: Path) -> None:
    """An ordinary user starts it, as apptainer asks more of root than every container's root has."""
    make_archive(tree, workdir / "deb.tar")
    write_workflow(workdir, """
        rule all:
            input: "inside.txt", "outside.txt"
        rule inside:
            output: "inside.txt"
            container: "deb.sif"
            shell: "echo $GREETING > {output}; ls -d $TMPDIR >> {output}; ls -d /.singularity.d >> {output}"
        rule outside:
            output: "outside.txt"
            shell: "(ls -d /.singularity.d 2>/dev/null || echo host) > {output}"
        """)
    ordinary.hand_over(workdir)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for words in (["apptainer", "build", "deb.sif", "docker-archive:deb.tar"], command("forge", "-j2", "--sdm", "apptainer")):
        done = subprocess.run([*ordinary.prefix(named=True), *words], cwd=workdir, capture_output=True, text=True,
                              check=False, timeout=DEADLINE, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
    result = Result(0, "", workdir)
    greeting, scratch, image = result.read("inside.txt").splitlines()
    assert (greeting, image) == ("hello", "/.singularity.d")
    assert scratch.startswith("/tmp/forge-")
    assert result.read("outside.txt") == "host\n"
    assert result.attempt("inside")["runtime"].startswith("container:")
    assert residue(workdir) == []


def make_archive(tree: Path, archive: Path) -> None:
    """Write an image with one layer as ``docker save`` does: docker's image specification 1.2."""
    layer = tree.read_bytes()
    config = {"architecture": "amd64", "os": "linux", "config": {"Env": ["GREETING=hello"]},
              "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}}
    manifest = [{"Config": "config.json", "RepoTags": ["forge-test-deb:1"], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for name, data in (("manifest.json", json.dumps(manifest).encode()), ("config.json", json.dumps(config).encode()),
                           ("layer.tar", layer)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


# -- podman of an ordinary user ----------------------------------------------------------------------------------------


def test_rootless_podman(tree: Path, workdir: Path) -> None:
    need("podman", "podman")
    need("newuidmap", "uidmap")
    write_workflow(workdir, WORKFLOW)
    (workdir / "forge.yaml").write_text(CATALOG.replace("IMAGE", "forge-test-deb:1"))
    os.link(tree, workdir / "tree.tar")
    ordinary.hand_over(workdir)
    runtime_dir = workdir / "run"
    runtime_dir.mkdir(mode=0o700)
    os.chown(runtime_dir, ordinary.UID, ordinary.UID)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_RUNTIME_DIR": str(runtime_dir)}

    def as_user(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*ordinary.prefix(named=True), *words], cwd=workdir, capture_output=True, text=True,
                              check=False, timeout=DEADLINE, env=environment)

    try:
        imported = as_user("podman", "import", "--quiet", "--change", "ENV=GREETING=hello", "tree.tar", "forge-test-deb:1")
        assert imported.returncode == 0, imported.stderr
        done = as_user(*command("forge", "-j2", "-k", "--forge-runtimes-dir", str(workdir / "store")))
        assert as_user("podman", "ps", "--all", "--quiet").stdout == ""
    finally:
        for path in workdir.rglob("pause.pid"):  # rootless podman leaves this process to hold its user namespace
            with suppress(ValueError, ProcessLookupError):
                pause = int(path.read_text())
                os.kill(pause, signal.SIGKILL)
                process = Path(f"/proc/{pause}")
                while process.exists():
                    time.sleep(0.02)
    _check(Result(done.returncode, done.stdout + done.stderr, workdir), ordinary.UID)
    assert _described(Result(0, "", workdir))["engine"] == "podman"
