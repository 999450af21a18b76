"""Links on the way to a file, and their targets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.plugin.symlinks import Links


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory ``w`` with links of all kinds, and their targets in ``o``."""
    place = tmp_path.resolve()
    (place / "w" / "d").mkdir(parents=True)
    (place / "o" / "e").mkdir(parents=True)
    for name, target in {"w/absolute": f"{place}/o", "w/d/relative": "../../o/e", "w/second": "absolute",
                         "o/e/back": "../../w/d/plain", "w/root": "/", "w/loop": "loop"}.items():
        (place / name).symlink_to(target)
    (place / "w" / "d" / "plain").touch()
    return place


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("d/plain", []),
        ("not/there", []),
        ("absolute/e/x", ["o/e/x"]),
        ("d/relative/x", ["o/e/x"]),
        ("./d/../absolute/e/x", ["o/e/x"]),
        ("absolute", ["o"]),
        ("second/e/x", ["w/absolute/e/x", "o/e/x"]),
        ("d/relative/back", ["o/e/back", "w/d/plain"]),
        ("../w/absolute/e/x", ["o/e/x"]),
    ],
)
def test_every_step_is_found(place: Path, path: str, expected: list[str]) -> None:
    links = Links(f"{place}/w")
    for _ in range(2):  # the second time from memory
        assert links.targets([path]) == tuple(f"{place}/{name}" for name in expected)
    assert Links("/").targets([f"{place}/w/{path}"]) == tuple(f"{place}/{name}" for name in expected)
    assert os.path.realpath(place / "w" / path) == os.path.normpath(
        ([f"{place}/w/{path}"] + [f"{place}/{name}" for name in expected])[-1]
    )


def test_a_link_to_the_root(place: Path) -> None:
    assert Links(f"{place}/w").targets(["root/etc/hostname"]) == ("/etc/hostname",)


def test_a_loop_ends(place: Path) -> None:
    assert len(Links(f"{place}/w").targets(["loop", "loop/x"])) < 100


def test_a_directory_made_later_may_be_a_link(place: Path) -> None:
    links = Links(f"{place}/w")
    assert links.targets(["later/x"]) == ()
    (place / "w" / "later").symlink_to(place / "o")
    assert links.targets(["later/x"]) == (f"{place}/o/x",)
