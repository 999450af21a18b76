"""Odd places to run in: namespaces around Forge, names that are not text, links under ``strict``, /tmp, no /proc.

Each case is one workflow with a shell command, a ``run:`` block and linked inputs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import DEADLINE, FORGE, command, write_workflow
from ..side_by_side import USERS

pytestmark = [pytest.mark.security, pytest.mark.slow]

WORKFLOW = """
rule all:
    input: "shell.txt", "run.txt", "linked.txt"
rule shell:
    output: "shell.txt"
    shell: "pwd > {output}; echo x > $TMPDIR/x"
rule run:
    output: "run.txt"
    run:
        import os
        open(output[0], "wb").write(os.getcwdb())
rule linked:
    input: "shell.txt", "links/in.txt", "twice/in.txt", "file.txt", "whole.txt"
    output: "linked.txt"
    shell: "cat {input} > {output}; test -L whole.txt"
"""
C_LOCALE = "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
# the directory; a command before the run; words before the commands; arguments
PLACES: dict[str, tuple[bytes, str, str, str]] = {
    "a user namespace, not UTF-8": (b"w\xff\xe9", "", "unshare -Urm", ""),
    "namespaces, strict": (b"strict", "", "unshare -Urmp --fork --mount-proc", "--forge-files strict"),
    "no UTF-8, strict, C": (b"a b\nc'\"$x\xff\xe9", "", f"env -u HOME {C_LOCALE}", "--forge-files strict"),
    "scratch inside": (b"w" * 200 + b"/" + b"x" * 200, "mkdir scratch", "env HOME=/nonexistent XDG_CACHE_HOME=$PWD/cache", "--forge-scratch-dir scratch"),
}


def _run(directory: Path, user: str, place: bytes, setup: str, before: str, arguments: str) -> str:
    """Run the workflow below ``directory``, and the commands that read its record; return their output."""
    write_workflow(directory / "files", WORKFLOW)
    given = ordinary.prefix() if user == "user" and os.geteuid() == 0 else []
    words = shlex.join(given) + " " + before
    script = f"""set -e
        mkdir -p "$place"; cp -r files/. "$place"; cd "$place"
        mkdir -p real; echo i > real/in.txt; ln -s real links; ln -s links twice; ln -s real/in.txt file.txt
        ln -s "$PWD/file.txt" whole.txt
        {setup}
        {f'chown -Rh {ordinary.UID}:{ordinary.UID} .' if given else ''}
        {words} {shlex.join(command("forge", "-j3"))} {arguments}
        test "$(cat linked.txt)" = "$(cat shell.txt; printf 'i\\ni\\ni\\ni')"
        test "$(cat run.txt)" = "$(cat shell.txt)"
        {words} {shlex.join([*FORGE, "jobs"])}
        {words} {shlex.join([*FORGE, "why", "shell"])}
        echo "left$(find .snakemake/forge/staging -mindepth 1 2> /dev/null)"
    """
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "bash", "-c", script] if os.geteuid() == 0 else ["bash", "-c", script],
        cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        timeout=DEADLINE, env=os.environb | {b"place": place, b"PYTHONPATH": bytes(Path(__file__).parents[2])},
    )  # fmt: skip
    said = done.stdout.decode("utf-8", "backslashreplace")
    assert done.returncode == 0, said
    return said


@pytest.mark.parametrize(("where", "user"), [(where, USERS[number % len(USERS)]) for number, where in enumerate(PLACES)])
def test_forge_works_in_odd_places(workdir: Path, where: str, user: str) -> None:
    said = _run(workdir, user, *PLACES[where])
    assert said.count("succeeded") >= 3
    assert "files open" not in said, "outputs could not be staged"
    assert "undeclared" not in said and "does not declare" not in said
    assert "\nleft\n" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts over /tmp and /proc")
@pytest.mark.parametrize("user", ["root", "user"])
def test_the_working_directory_is_tmp(workdir: Path, user: str) -> None:
    setup = "cp -a . /run/forge-test-$$; mount -t tmpfs -o mode=1777 none /tmp; cp -a /run/forge-test-$$/. /tmp; rm -r /run/forge-test-$$"
    setup += '; cd /tmp; ln -sf "$PWD/file.txt" whole.txt'
    checkout = Path(__file__).parents[2]
    if checkout.is_relative_to("/tmp"):  # the tmpfs would hide the checkout; root's bind mount there would keep users from layers
        setup = f"mount -t tmpfs none /mnt; mkdir /mnt/checkout; mount --bind {checkout} /mnt/checkout; {setup}"
        setup += f"; mkdir -p {checkout.parent}; ln -s /mnt/checkout {checkout}"
    said = _run(workdir, user, b"w", setup, "", "")
    assert "files guard" in said
    assert "does not declare" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
@pytest.mark.parametrize("user", ["root", "user"])
def test_the_working_directory_is_read_only(workdir: Path, user: str) -> None:
    """Only ``.snakemake``, which Snakemake itself needs, is writable; outputs are elsewhere."""
    work = workdir / "work"
    elsewhere = work / "elsewhere"
    write_workflow(work, f"""
        rule a:
            output: "{elsewhere}/a.txt"
            shell: "echo written > {{output}}"
        """)
    before = ordinary.given_to(user, work)
    script = f"""set -e
        mkdir .snakemake elsewhere; mount --bind -o ro . .; cd "$PWD"
        for name in .snakemake elsewhere; do mount -t tmpfs -o mode=777 none $name; done
        {shlex.join([*before, "env", f"HOME={elsewhere}", *command("forge", "-j1", f"{elsewhere}/a.txt")])}
        {shlex.join([*before, *FORGE, "jobs"])}
        test "$(cat elsewhere/a.txt)" = written
    """
    done = subprocess.run(["unshare", "-m", "--propagation", "private", "bash", "-c", script], cwd=work, text=True, check=False,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE)  # fmt: skip
    assert done.returncode == 0 and "succeeded" in done.stdout, done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts over /proc")
def test_without_proc_it_says_so(workdir: Path) -> None:
    write_workflow(workdir, WORKFLOW)
    script = f"mount -t tmpfs none /proc; {shlex.join(command('forge', '-j1', 'shell.txt'))}"
    done = subprocess.run(["unshare", "-m", "--propagation", "private", "bash", "-c", script], cwd=workdir, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=DEADLINE)
    assert done.returncode != 0
    assert "Forge needs /proc" in done.stderr
    assert not (workdir / "shell.txt").exists()
