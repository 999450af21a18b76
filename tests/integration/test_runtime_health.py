"""Damaged runtimes of each kind in one run: before the first job, Forge names file, package and the command that repairs them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.software import venv
from snakemake_executor_plugin_forge.software.health import Built, verify
from snakemake_executor_plugin_forge.spec.catalog import Runtime, RuntimeKind
from snakemake_executor_plugin_forge.spec.errors import BrokenRuntimeError

from ..conda.channel import environment_file, make_channel, packages
from ..conftest import FORGE, Result, forge, residue, run, write_workflow
from .test_runtimes import TOOL, make_wheel

pytestmark = pytest.mark.busy  # it mostly waits for other programs to start

MODULES = Path("/usr/share/modules/init/bash")
DEBIAN = Path("/var/lib/dpkg/info/bash.md5sums")
LOADERS = b"/lib64/ld-linux-x86-64.so.2", b"/lib/ld-musl-x86_64.so.1"

RULE = "rule {name}:\n    output: '{name}.txt'\n    resources: forge_runtime='{name}'\n    shell: 'touch {{output}}'\n"
KINDS = ["py", "tools", "locked", "root", "host"]
CATALOG = """
version: 1
runtimes:
  py: {venv: requirements.txt}
  tools: {conda: tools.yaml}
  locked: {conda: explicit.txt}
  root: {container: "dir:root"}
"""


def _flip(path: Path) -> None:
    before = path.stat()
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(body)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _make_root(root: Path) -> None:
    """Make a root directory with Debian's bash, its libraries, and dpkg's lists of it."""
    loaded = subprocess.run(["ldd", "/bin/bash"], capture_output=True, text=True, check=True).stdout
    for path in ("/bin/bash", *re.findall(r"(/\S+) \(", loaded), str(DEBIAN), str(DEBIAN.with_suffix(".list"))):
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory whose venv and first conda environment are built; ``locked`` is not."""
    directory = tmp_path_factory.mktemp("health").resolve()
    channel = make_channel(directory / "channel")
    for version in ("1.0", "2.0"):
        make_wheel(directory / "wheels", "forgetool", version, TOOL.format(version=version))
    (directory / "requirements.txt").write_text(f"--no-index\n--find-links {directory}/wheels\nforgetool==1.0\n")
    (directory / "tools.yaml").write_text(environment_file(channel, "bcftools", "hooked=2.0", "python"))
    archive = directory / "channel/linux-64/many-1.0-0.tar.bz2"
    (directory / "explicit.txt").write_text(f"@EXPLICIT\nfile://{archive}#{hashlib.md5(archive.read_bytes()).hexdigest()}\n")
    _make_root(directory / "root")
    write_workflow(directory, "".join(
        ["rule all:\n    input: " + ", ".join(f"'{name}.txt'" for name in [*KINDS, "module"]) + "\n",
         *(RULE.format(name=name) for name in KINDS),
         "rule module:\n    output: 'module.txt'\n    envmodules: 'forge/9'\n    shell: 'touch {output}'\n"]))
    (directory / "forge.yaml").write_text(CATALOG)
    built = forge(directory, "runtimes", "build", "py", "tools", "--runtimes-dir", "store")
    assert built.returncode == 0, built.stderr
    return directory


def _replace_in_channel(channel: Path) -> None:
    """Replace a package by one of the same name and version with other content, as no author should."""
    package = next(p for p in packages() if p.name == "many")
    package.files["share/many/000.txt"] = b"another one\n"
    package.write(channel / "linux-64")


@pytest.mark.skipif(not DEBIAN.exists() or not MODULES.exists() or os.uname().machine != "x86_64",
                    reason="needs Debian on x86_64, and apt-get install environment-modules")
def test_each_kind_is_named_before_the_first_job_and_its_command_repairs_it(place: Path) -> None:
    py, tools = (next(place.glob(f"store/{kind}-*/env")) for kind in ("venv", "conda"))
    pip = [f"{py}/bin/python", "-m", "pip", "install", "--quiet", "--no-index", f"--find-links={place}/wheels"]
    subprocess.run([*pip, "forgetool==2.0"], check=True, capture_output=True)
    module = next(py.glob("lib/python3*/site-packages/pip/__main__.py"))
    _flip(module)
    python = py / "bin/python"  # as if made on another system: its loader is that of musl
    body = python.resolve().read_bytes()
    assert LOADERS[0] in body
    python.unlink()
    python.write_bytes(body.replace(LOADERS[0], LOADERS[1].ljust(len(LOADERS[0]), b"\0"), 1))
    _flip(tools / "bin/bcftools.real")
    (record,) = tools.glob("conda-meta/hooked-*.json")
    record.unlink()
    _replace_in_channel(place / "channel")
    _flip(place / "root/bin/bash" if (place / "root/bin/bash").is_file() else place / "root/usr/bin/bash")

    env = {"BASH_ENV": str(MODULES), "MODULEPATH": str(place)}
    store = f"--forge-runtimes-dir={place}/store"
    result = run(place, "-j2", store, "--sdm", "env-modules", env=env)
    assert result.code != 0
    assert not (place / ".snakemake/forge/runs").exists() or Result(0, "", place).attempts() == []
    words = " ".join(result.output.split())
    for expected in (
        f"{python} is for another C library: musl, and the environment was made for glibc",
        "forgetool-2.0.dist-info is not the package that was installed: 2.0 instead of 1.0 (package forgetool)",
        f"{module} is not as it was installed: its checksum is another one (package pip ",
        f"{tools}/bin/bcftools.real is not as it was installed: its checksum is another one (package bcftools 1.16)",
        f"{record} is missing (package hooked 2.0 0)",
        "channel/linux-64/many-1.0-0.tar.bz2 (package many 1.0) has the md5 ",
        "bin/bash is not as it was installed: its checksum is another one (package bash)",
        f"or repair it with: chroot {place}/root apt-get install --reinstall bash",
        "Unable to locate a modulefile for 'forge/9'",
        "By hand: module purge && module load forge/9",
    ):
        assert expected in words, f"{expected}\n\n{result.output}"

    commands = re.findall(r"Repair it with: snakemake-forge (runtimes check \w+ --repair --runtimes-dir \S+)", result.output)
    assert [shlex.split(command)[2] for command in commands] == ["py", "tools"]
    for command in commands:
        mended = forge(place, *shlex.split(command))
        assert mended.returncode == 0, mended.stdout + mended.stderr
    manifests = [json.loads(path.read_text()) for path in place.glob("store/*/runtime.json")]
    for manifest in manifests:
        built = Built(manifest["packages"], manifest["details"]["libc"])
        found = verify(manifest["prefix"], RuntimeKind(manifest["kind"]), None, built=built, fully=True)
        assert found.problems == (), found
    assert residue(place) == []


def test_the_environment_of_snakemake_itself_is_read_when_asked_for(place: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"  # a venv that stands for Snakemake's: it has Forge through a .pth file, and its own package
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", own], check=True)
    site = next(own.glob("lib/python3*/site-packages"))
    (site / "forge.pth").write_text("\n".join(path for path in sys.path if path.startswith("/")))
    wheel = place / "wheels/forgetool-1.0-py3-none-any.whl"
    shutil.unpack_archive(wheel, site, "zip")
    (site / "forgetool.py").write_text("changed = True\n")
    words = [str(own / "bin/python"), *FORGE[1:], "runtimes", "check", "host", "--runtimes-dir", str(tmp_path / "store")]
    found = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert f"{site}/forgetool.py is not as it was installed" in found.stdout, found.stdout + found.stderr
    assert f"{own}/bin/python -m pip install --force-reinstall --no-deps forgetool==1.0" in found.stdout


def test_a_wheel_that_is_not_the_one_of_the_requirements_is_named(tmp_path: Path) -> None:
    make_wheel(tmp_path, "forgetool", "1.0", TOOL.format(version="1.0"))
    source = tmp_path / "requirements.txt"
    source.write_text(f"--no-index\n--find-links {tmp_path}\nforgetool==1.0 --hash=sha256:{'0' * 64}\n")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path / "there"), "-r", str(source)]
    with pytest.raises(BrokenRuntimeError, match=r"forgetool==1\.0 from file:.*Expected sha256 000.*Got"):
        venv.run_tool(words, Runtime("py", RuntimeKind.VENV, str(source)), "pip cannot install its requirements")
