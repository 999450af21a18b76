"""New files of a job that would steer programs outside of its sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.staging.control_files import PROGRAMS, WORKFLOW, ControlFiles, is_cached

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "files.md"

CLONED = """[core]
\trepositoryformatversion = 0
\tbare = false
[remote "origin"]
\turl = /srv/x
\tfetch = +refs/heads/*:refs/remotes/origin/*
[branch "main"]
\tremote = origin
\tmerge = refs/heads/main
"""


def has(root: Path, name: str, layer: dict[str, str] | None = None, *, left: tuple[str, ...] = (), targets: tuple[str, ...] = ()) -> bool:
    """Whether a new file steers programs; ``layer`` has other files beside it."""
    for path, text in {name: "x", **(layer or {})}.items():
        (root / "layer" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "layer" / path).write_text(text)
    place = root / "place"
    place.mkdir(exist_ok=True)
    return ControlFiles(lambda path: path in {f"{place}/{one}" for one in left}, frozenset(f"{place}/{t}" for t in targets)).has(
        str(place), f"{place}/{name}", f"{root}/layer/{name}")


@pytest.mark.parametrize("name", [
    "Snakefile", "workflow/Snakefile", "forge.yaml", "profiles/default/config.yaml", "workflow/profiles/a/b/config.v8+.yaml", "profiles/config.yml",
    ".git/hooks/pre-commit", ".git/config", "deep/er/.git/hooks/post-checkout", ".envrc", "results/.envrc", "results/new/.Rprofile", "a/.Renviron",
    ".condarc", ".venv/pyvenv.cfg", "env/pyvenv.cfg", ".venv/lib/python3.11/site-packages/x.pth", "x.pth", "sub/sitecustomize.py", "usercustomize.py",
    "venv/lib/python3.11/site-packages/typing_extensions.py", ".bashrc", ".netrc", ".ssh/authorized_keys", ".gitconfig", ".ipython/profile_default/startup/x.py"])
def test_files_that_steer(name: str, tmp_path: Path) -> None:
    assert has(tmp_path, name)


@pytest.mark.parametrize("name", [
    "Makefile", "sub/Makefile", "sub/Snakefile", "sub/forge.yaml", "config.yaml", "config/config.yaml", "data/profiles.yaml", "a.txt", "results/x.envrc",
    "typing.py", "x.Rprofile", "hooks/x", "config", "pth", "a/profiles/b.yaml", ".Rhistory", "site-packages.txt"])
def test_files_that_do_not(name: str, tmp_path: Path) -> None:
    assert not has(tmp_path, name)


def test_a_workflow_elsewhere_is_one(tmp_path: Path) -> None:
    (tmp_path / "place" / "other" / "workflow").mkdir(parents=True)
    (tmp_path / "place" / "other" / "workflow" / "Snakefile").touch()
    assert has(tmp_path, "other/Snakefile") and has(tmp_path, "other/profiles/x/config.yaml")
    assert not has(tmp_path, "third/Snakefile")


def test_a_repository_and_an_environment_that_a_job_has_made_are_whole(tmp_path: Path) -> None:
    clone = {"tool/.git/HEAD": "ref: x", "tool/.git/config": CLONED}
    for name in ("tool/.git/config", "tool/.git/hooks/pre-commit.sample", "tool/.envrc", "tool/sub/.Rprofile"):
        assert not has(tmp_path, name, {name: "x", **clone}), name
    assert has(tmp_path, "tool/.git/hooks/pre-commit", clone)
    assert not has(tmp_path, "env/lib/python3/site-packages/x.pth", {"env/bin/python": "x"})
    assert not has(tmp_path, "conda/lib/python3/site-packages/x.py", {"conda/conda-meta/history": "x"})
    (tmp_path / "place" / "env").mkdir()
    assert not has(tmp_path, "env/pyvenv.cfg", {"env/bin/python": "x"})  # Snakemake has made the directory for an output in it
    (tmp_path / "place" / "env" / "mine").touch()
    assert has(tmp_path, "env/pyvenv.cfg") and not has(tmp_path, "env/pyvenv.cfg", left=("env",))
    assert not has(tmp_path, "env/pyvenv.cfg", targets=("env/mine",))
    assert has(tmp_path, ".venv/lib/python3/site-packages/x.pth", {".venv/bin/python": "x"})


@pytest.mark.parametrize("line", ["[core]\n\tfsmonitor = x", "[core]\n\tsshCommand = x", "[core]\n\thooksPath = x", "[include]\n\tpath = x", "[alias]\n\tst = !x",
                                  "[core] editor = x", '[filter "a"]\n\tclean = x', "[core]\n\tbare = false \\\n\tx", "\0", '[diff "a"]\ntextconv = x'])
def test_a_configuration_that_names_a_program_is_not_that_of_a_clone(line: str, tmp_path: Path) -> None:
    assert has(tmp_path, "tool/.git/config", {"tool/.git/HEAD": "x", "tool/.git/config": f"{CLONED}{line}\n"})


def test_a_repository_is_known_by_what_is_there_and_by_what_is_new(tmp_path: Path) -> None:
    """HEAD, a file of settings or hooks, or a link to them: with the last of these, git would obey."""
    place = tmp_path / "place"
    for name in ("bare.git/HEAD", ".git/modules/foo/HEAD", "d/HEAD", "late/hooks/post-checkout", "mild/config", "tool/.git/HEAD"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(CLONED)
    evil = f"{CLONED}[core]\n\tfsmonitor = x\n"
    for name in ("bare.git/hooks/post-receive", ".git/modules/foo/hooks/post-checkout", "late/HEAD"):
        assert has(tmp_path, name), name
    for name in ("bare.git/hooks/x.sample", "mild/HEAD", "d/x", "new/HEAD", "tool/.git/ORIG_HEAD"):
        assert not has(tmp_path, name), name
    assert has(tmp_path, "d/config", {"d/config": evil}) and not has(tmp_path, "d/config", {"d/config": CLONED})
    assert has(tmp_path, "d/commondir", {"d/commondir": "../y"}) and not has(tmp_path, "d/commondir", {"d/commondir": "../..\n"})
    for name in ("tool/.git/hooks", "d/hooks", ".vscode", "x/.config", "profiles", "sub/.ssh"):
        (tmp_path / "layer" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "layer" / name).symlink_to("/somewhere")
        control = ControlFiles(lambda path: False, frozenset())
        assert control.has(str(place), f"{place}/{name}", f"{tmp_path}/layer/{name}"), name
    (tmp_path / "layer/data").symlink_to("/somewhere")
    assert not control.has(str(place), f"{place}/data", f"{tmp_path}/layer/data")


def test_of_a_changed_configuration_only_what_is_new_counts(tmp_path: Path) -> None:
    control, new, old = ControlFiles(lambda path: True, frozenset()), tmp_path / "layer/t/.git/config", tmp_path / "place/t/.git/config"
    for path in (new, old):
        path.parent.mkdir(parents=True)
    editor = "[core]\n\teditor = vi\n"
    for before, after, expected in ((CLONED, f"{CLONED}[user]\n\tname = x\n", False), (CLONED, CLONED + editor, True),
                                    (CLONED + editor, f"{editor}[user]\n\tname = x\n", False), (CLONED + editor, CLONED, False),
                                    (CLONED + editor, CLONED + editor.replace("vi", "x"), True), ("\\", editor, True)):
        old.write_text(before)
        new.write_text(after)
        assert control.has(f"{tmp_path}/place", str(old), str(new), str(old)) is expected, (before, after)
    hook = old.with_name("hooks") / "pre-commit"
    assert control.has(f"{tmp_path}/place", str(hook), f"{new.parent}/hooks/pre-commit", str(hook))


def test_weights_of_a_model_are_data(tmp_path: Path) -> None:
    assert has(tmp_path, "models/a.pth")
    (tmp_path / "layer/models/b.pth").write_bytes(b"PK\x03\x04\0\0")
    assert not ControlFiles(lambda path: False, frozenset()).has(str(tmp_path / "place"), f"{tmp_path}/place/models/b.pth", f"{tmp_path}/layer/models/b.pth")


def test_byte_code_of_the_users_sources_is_a_cache(tmp_path: Path) -> None:
    (tmp_path / "helper.py").touch()
    (tmp_path / "theirs.py").touch()
    left = {f"{tmp_path}/theirs.py"}.__contains__
    assert is_cached(f"{tmp_path}/__pycache__/helper.cpython-311.pyc", left)
    assert not is_cached(f"{tmp_path}/__pycache__/theirs.cpython-311.pyc", left)
    assert not is_cached(f"{tmp_path}/__pycache__/gone.cpython-311.pyc", left)
    assert not is_cached(f"{tmp_path}/helper.pyc", left)


def test_the_page_lists_all_of_them() -> None:
    text = PAGE.read_text().split("## Files that steer programs")[1].split("\n## ")[0]
    assert not [name for name in (*WORKFLOW, *PROGRAMS) if f"`{name}`" not in text]
