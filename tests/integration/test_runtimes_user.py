"""Runtimes of an ordinary user: in user namespaces, with an image's root directory that the user owns."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .. import ordinary
from ..conda.channel import environment_file, make_channel
from ..conftest import residue, run, write_workflow

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user, which root alone can")

WORKFLOW = """
rule all:
    input: "conda.txt", "image.txt"
rule conda_a:
    output: "conda.txt"
    shell: "command -v samtools > {output}; echo $FORGE_TEST_HOOK >> {output}"
rule image_a:
    output: "image.txt"
    shell:
        "cat /note > {output}; (echo x > /note) 2>/dev/null && echo writable >> {output} || echo read-only >> {output};"
        " echo $TMPDIR >> {output}; [ -e /usr ] && echo usr >> {output} || echo small >> {output}"
"""

CATALOG = """
version: 1
runtimes: {tools: {conda: env.yaml}, small: {container: "dir:root", memory: 50MiB}}
rules: {"conda_*": tools, "image_*": small}
"""


def make_root(root: Path) -> None:
    """A root directory with bash and cat of this machine, and the libraries that they need."""
    for program in ("/bin/bash", "/bin/cat"):
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for path in (program, *re.findall(r"(/\S+) \(0x", listed)):
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (root / "note").write_text("this is the image\n")


def test_conda_and_a_root_directory_as_an_ordinary_user(workdir: Path) -> None:
    channel = make_channel(workdir / "channel")
    (workdir / "env.yaml").write_text(environment_file(channel, "samtools", "hooked"))
    make_root(workdir / "root")
    write_workflow(workdir, WORKFLOW)
    (workdir / "forge.yaml").write_text(CATALOG)
    ordinary.hand_over(workdir)
    result = run(workdir, "-j2", "--forge-runtimes-dir", str(workdir / "store"), before=ordinary.prefix())
    assert result.code == 0, result.output
    tool, hook = (workdir / "conda.txt").read_text().splitlines()
    assert tool == f"{hook.removeprefix('active in ')}/bin/samtools"
    note, state, scratch, size = (workdir / "image.txt").read_text().splitlines()
    assert (note, state, size) == ("this is the image", "read-only", "small")
    assert scratch.startswith("/tmp/forge-")
    assert (workdir / "root" / "note").read_text() == "this is the image\n"
    record = result.attempt("image_a")
    assert json.loads(Path(record["directory"], "spec.json").read_text())["runtime_id"].startswith("container-")
    assert residue(workdir) == []
