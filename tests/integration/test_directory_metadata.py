"""Metadata of the working directory, /tmp and $HOME: a job's changes affect no other job."""

from __future__ import annotations

from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import run
from ..side_by_side import USERS

pytestmark = pytest.mark.security

LAST = 6
HARM = """
import os, pathlib
places = [".", "/tmp", str(pathlib.Path.home())]
acl = bytes.fromhex("02000000" "01000600ffffffff" "04000600ffffffff" "20000600ffffffff")  # acl(5): default, for others rw
for place in places:
    for name, value in (("user.job", b"1"), ("system.posix_acl_default", acl)):
        try:
            os.setxattr(place, name, value)
        except OSError as error:
            print(error)
    os.utime(place, (1, 1))
for place in ("data", "parent", places[2], ".", "/tmp"):  # of an ordinary user, what is below is closed with it
    try:
        os.chmod(place, 0)
    except PermissionError as error:
        print(error)
"""
RULES = """
rule first:
    output: "parent/0"
    shell: "touch {output}"
rule next:
    input: lambda w: f"parent/{int(w.n) - 1}"
    output: "parent/{n,[1-9]}"
    shell: '''
        touch {output} /tmp/new
        stat -c '%a %u %g %n' . /tmp ~ data parent > "$TMPDIR/seen"
        stat -c '%a' {output} /tmp/new >> "$TMPDIR/seen"
        python3 -c 'import os; print([n for d in (".", "/tmp", os.environ["HOME"]) for n in os.listxattr(d)])' >> "$TMPDIR/seen"
        cp "$TMPDIR/seen" {output}
        python3 harm.py
        '''
rule fails:
    output: "never"
    shell: "touch $FORGE_CHECKPOINT_DIR/x; chmod 000 $FORGE_CHECKPOINT_DIR; false"
"""


@pytest.mark.parametrize("user", USERS)
def test_what_a_job_sets_on_its_directories_holds_for_no_other(workdir: Path, user: str) -> None:
    (workdir / "data").mkdir(parents=True)
    (workdir / "parent").mkdir()
    (workdir / "data/file").write_text("raw\n")
    (workdir / "harm.py").write_text(HARM)
    (workdir / "Snakefile").write_text(RULES)
    before = ordinary.given_to(user, workdir)
    modes = {path: path.stat().st_mode for path in (workdir, workdir / "data", workdir / "parent", Path("/tmp"))}
    result = run(workdir, "-j1", f"parent/{LAST}", before=before)
    assert result.code == 0, result.output
    seen = {(workdir / f"parent/{n}").read_text() for n in range(1, LAST + 1)}
    assert len(seen) == 1, "\n".join(seen)
    assert "\n[]\n" in seen.pop()
    assert {path: path.stat().st_mode for path in modes} == modes
    for _ in range(2):  # the second attempt gets the directory that the first one made inaccessible
        failed = run(workdir, "-j1", "never", before=before)
        assert failed.attempts()[-1]["reason"].startswith("exit code 1"), failed.output
