"""The place where a job runs, as far as its software is concerned."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest

from snakemake_executor_plugin_forge.plugin.software import Deployment, Place
from snakemake_executor_plugin_forge.software.activation import Activation
from snakemake_executor_plugin_forge.spec.catalog import Runtime, RuntimeKind
from snakemake_executor_plugin_forge.spec.errors import UsageError

SHELL = SimpleNamespace(rule=SimpleNamespace(name="a"), is_shell=True)
SCRIPT = SimpleNamespace(rule=SimpleNamespace(name="a"), is_shell=False)
PY = Runtime("py", RuntimeKind.VENV)
OWN = Runtime("conda:envs/x.yaml", RuntimeKind.CONDA)
IN_PY = Activation("py", "venv-1", "/env", (3, 11), {"A": "it's"}, ("B",))


def _place(runtime: Runtime, activation: Activation | None) -> Place:
    return Place(runtime, activation, (), is_plain=True)


def test_a_second_snakemake_gets_what_it_cannot_find_out_itself() -> None:
    assert _place(PY, IN_PY).for_inner_snakemake(SHELL) is IN_PY
    assert _place(OWN, IN_PY).for_inner_snakemake(SCRIPT) is None  # Snakemake activates that one itself
    with pytest.raises(UsageError, match="Rule a: something among its params cannot be pickled"):
        _place(PY, IN_PY).for_inner_snakemake(SCRIPT)
    with pytest.raises(UsageError, match="the runtime bed does not allow"):
        _place(Runtime("bed", RuntimeKind.CONTAINER), Activation("bed", root="/image")).for_inner_snakemake(SHELL)


def test_on_another_host_a_second_snakemake_is_refused_where_it_would_run_in_the_wrong_environment() -> None:
    _place(OWN, IN_PY).refuse_elsewhere(SCRIPT)
    _place(Runtime("host"), None).refuse_elsewhere(SCRIPT)
    with pytest.raises(UsageError, match=r"on another host only a plain shell command .*\(py\)"):
        _place(PY, IN_PY).refuse_elsewhere(SHELL)


def test_environments_of_the_user_are_shown_to_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such environments may lie in the home directory, which ``strict`` hides, or in /tmp."""
    from snakemake.deployment import conda

    monkeypatch.setattr(conda, "Conda", lambda: SimpleNamespace(info={"envs": ["/base", "/base/envs/x", "/else/x", "/else/y"]}))
    envs = (SimpleNamespace(name="x", dir=None), SimpleNamespace(name=None, dir="/there"), SimpleNamespace(name=None, dir=None))
    jobs = [SimpleNamespace(conda_env=env, container_img=None) for env in envs]
    deployment = Deployment.__new__(Deployment)
    deployment._conda, deployment._container, deployment._workflow = True, False, SimpleNamespace(conda_base_path="/base")
    assert set(deployment._of_users(jobs)) == {"/there", "/base", "/base/envs/x", "/else/x"}
    deployment._conda = False
    assert not list(deployment._of_users(jobs))


def test_by_hand_in_the_environment_and_in_the_image() -> None:
    assert _place(PY, IN_PY).by_hand("tool") == "unset B\nexport A='it'\"'\"'s'\ntool"
    inside = _place(Runtime("bed"), Activation("bed", variables={"A": "1"}, root="/an image")).by_hand("tool")
    assert inside is not None
    assert "\nbwrap --ro-bind '/an image' / " in inside
    in_shell = subprocess.run(["bash", "-c", inside.replace("tool", "echo $A")], env={"FORGE_IN_IMAGE": "yes", "PATH": os.environ["PATH"]},
                              capture_output=True, text=True, check=True)
    assert in_shell.stdout == "1\n"
    assert inside.startswith("inside='set -euo pipefail; export A=1\ntool'\n")
    assert Place(PY, IN_PY, (), is_plain=False).by_hand("tool") is None
