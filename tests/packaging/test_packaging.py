"""The distributions: what the wheel and the source distribution contain, and that the installed wheel runs a real rule."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "snakemake_executor_plugin_forge"
PACKAGES = (PACKAGE, "snakemake_logger_plugin_forge", "snakemake_scheduler_plugin_forge")
# All files of the packages that are not Python source. A new one must be listed: a wheel takes whatever lies there.
DATA = {f"{PACKAGE}/analysis/data/{name}" for name in ("grafana-dashboard.json", "report.css", "report.html.j2", "report.js")} | {
    f"{package}/py.typed" for package in PACKAGES}
SDIST = {".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}


def _call(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=os.environ | environment, text=True, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout
    return done.stdout


def _tree(directory: Path) -> set[str]:
    files = (path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(directory)) for path in files}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel built from it: a file missing in one is missing in both."""
    directory = tmp_path_factory.mktemp("dist")
    _call(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory)
    return directory


def test_the_wheel_contains_the_packages_and_nothing_else(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {name for name in names if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    info = {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name}
    assert packages == {f"{folder}/{name}" for folder in PACKAGES for name in _tree(ROOT / folder)}
    assert {name for name in packages if not name.endswith(".py")} == DATA
    assert info == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert len(names) == len(packages) + len(info)


def test_the_source_distribution_contains_packages_and_documentation(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    folders = {f"{folder}/{name}" for folder in (*PACKAGES, "docs") for name in _tree(ROOT / folder)}
    assert names == SDIST | folders


def test_an_index_takes_both(dist: Path) -> None:
    said = _call(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())
    assert said.count("PASSED") == 2


def test_the_installed_wheel_runs_the_first_rule_of_the_demo(dist: Path, tmp_path: Path) -> None:
    """The environment has the wheel, and behind it the tests' site-packages for Snakemake and the other dependencies."""
    (wheel,) = dist.glob("*.whl")
    venv, work = tmp_path / "venv", tmp_path / "work"
    work.mkdir()
    _call(sys.executable, "-m", "venv", "--without-pip", venv)
    _call(sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "--quiet", "--no-index", "--no-deps", wheel)
    (site,) = venv.glob("lib/*/site-packages")
    # A directory named in a .pth file has its own .pth files ignored: the editable installation stays out.
    (behind,) = {path for path in sys.path if path.startswith(sys.prefix) and path.endswith("site-packages")}
    (site / "behind.pth").write_text(f"{behind}\n")
    place = _call(venv / "bin/python", "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=work)
    assert Path(place.strip()).is_relative_to(site)

    snakefile = ROOT / "workflows" / "variants" / "Snakefile"
    _call(venv / "bin/python", "-m", "snakemake", "--snakefile", snakefile, "--executor", "forge", "--scheduler", "forge", "-j1", "results/verified.tsv",
          cwd=work, PYTHONPATH="")
    assert (work / "results" / "verified.tsv").read_text().count("\n") >= 4
    listed = _call(venv / "bin/snakemake-forge", "jobs", cwd=work)
    assert "verify_data" in listed
    assert "succeeded" in listed
