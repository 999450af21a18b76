"""Notifications of a job's calls on the real kernel: the files that it appends to or locks."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import syscalls
from snakemake_executor_plugin_forge.sandbox import seccomp
from snakemake_executor_plugin_forge.sandbox.filesystem.overlay import Layer
from snakemake_executor_plugin_forge.sandbox.listener import Listener
from snakemake_executor_plugin_forge.spec.job import Target

from ..child import in_child
from ..ordinary import reachable

pytestmark = pytest.mark.skipif(not seccomp.can_listen(), reason="this kernel has no such notifications")

Found = tuple[dict[str, int], dict[str, int], tuple[str, ...]]

_IN_DIRECTORY = 'import os; os.open("x", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644, dir_fd=os.open("sub", os.O_RDONLY))'

_LOCKF = "/usr/bin/python3 -c 'import fcntl; fcntl.lockf(open(\"old.txt\", \"r+\"), fcntl.{})'"

# Before: old.txt with 4 bytes; sub/link -> ../old.txt, sub/dangling -> ../new.txt, sub/abs -> ROOT/old.txt.
SCRIPTS: dict[str, tuple[str, dict[str, int], tuple[str, ...]]] = {
    "old": ("echo b >> old.txt; echo c >> old.txt", {"old.txt": 4}, ()),
    "new": ("mkdir -p a/b; echo b >> a/b/new.txt", {"a/b/new.txt": 0}, ()),
    "descriptor": ("exec >> old.txt; echo b; echo c", {"old.txt": 4}, ()),
    "elsewhere": ("cd sub; echo b >> ../old.txt; echo c >> $PWD/../two.txt", {"old.txt": 4, "two.txt": 0}, ()),
    "link": ("echo b >> sub/link; echo c >> sub/dangling", {"old.txt": 4, "new.txt": 0}, ()),
    "absolute": ("cd /; echo b >> $OLDPWD/sub/abs", {"old.txt": 4}, ()),
    "directory": (f"/usr/bin/python3 -c '{_IN_DIRECTORY}'", {"sub/x": 0}, ()),
    "truncated before": ("echo b > old.txt; echo c >> old.txt", {}, ()),
    "made before": ("echo bb > new.txt; echo c >> new.txt", {}, ()),
    "deleted before": ("rm old.txt; echo c >> old.txt", {}, ()),
    "replaced after": ("echo b >> old.txt; echo c > new; mv new old.txt", {}, ()),
    "made and replaced": ("echo b >> new.txt; echo >> two.txt; echo c > new; mv new new.txt", {"two.txt": 0}, ()),
    "shorter after": ("echo b >> old.txt; : > old.txt", {}, ()),
    "no such directory": ("echo b 2> /dev/null >> absent/x; true", {}, ()),
    "absent at first": ("(echo b >> absent/x) 2> /dev/null; mkdir absent; echo c >> absent/x", {"absent/x": 0}, ()),
    "target": ("echo b >> target.txt; flock target.txt true; echo >> targets/x", {}, ()),
    "outside": ("echo b >> ../outside; flock ../outside rm ../outside", {}, ()),
    "exclusive": ("flock lock echo; flock -n old.txt true", {}, ("lock", "old.txt")),
    "shared": ("flock -s old.txt true", {}, ()),
    "temporary": ("flock lock rm lock", {}, ()),
    "waiting": (_LOCKF.format("LOCK_EX"), {}, ("old.txt",)),
    "not waiting": (_LOCKF.format("LOCK_EX | fcntl.LOCK_NB"), {}, ()),
    "waiting to read": (_LOCKF.format("LOCK_SH"), {}, ()),
    "directory as lock": ("mkdir my.lock; rmdir my.lock; mkdir -p sub/LOCK target.txt.lock/block", {}, ("my.lock", "sub/LOCK", "target.txt.lock")),
    "no lock": ("mkdir -p .git/lock .snakemake/locks haploblock targets/lock; mkdir sub 2> /dev/null; true", {}, ()),
}  # fmt: skip
BEGUN = {"made before": {"new.txt": 3}, "truncated before": {"old.txt": 2}, "deleted before": {}}


@pytest.mark.parametrize("ordinary", [False, True], ids=["as_is", "ordinary"])
@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_appends_and_locks(name: str, ordinary: bool) -> None:
    script, appended, locked = SCRIPTS[name]
    with reachable() as place:
        place.chmod(0o777)
        root = place / "work"
        found = in_child(lambda: _listen(str(root), script), ordinary=ordinary)
    begun = BEGUN.get(name, {})
    assert found == (*({f"{root}/{place}": size for place, size in sizes.items()} for sizes in (appended, begun)),
                     tuple(f"{root}/{p}" for p in locked))


def _listen(root: str, script: str) -> Found:
    os.makedirs(f"{root}/sub")
    Path(root, "old.txt").write_text("old\n")
    for name, target in (("link", "../old.txt"), ("dangling", "../new.txt"), ("abs", f"{root}/old.txt")):
        os.symlink(target, f"{root}/sub/{name}")
    Path(root, "targets").mkdir()
    layer = Layer(root, f"{root}/.layer", root)
    layer.make()
    is_root = os.geteuid() == 0
    _enter_user_namespace()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
        syscalls.run([layer.mount_step(root, not is_root), syscalls.chdir_step(root), syscalls.prctl_step(syscalls.PR_SET_NO_NEW_PRIVS, 1)])
        fd = seccomp.listen()
        assert fd is not None
        socket.send_fds(theirs, [b"x"], [fd])
        os.close(fd)
        os.execvp("bash", ["bash", "-c", script])
    _, (fd, *_), _, _ = socket.recv_fds(ours, 1, 1)
    listener = Listener([layer], [Target(f"{root}/target.txt", "target.txt"), Target(f"{root}/targets", "targets")])
    listener.begin(fd)
    poll, pidfd = select.poll(), os.pidfd_open(pid)
    for one in (fd, pidfd):
        poll.register(one, select.POLLIN)
    while not any(one == pidfd for one, _ in poll.poll()):
        listener.answer()
    listener.close()
    assert os.waitpid(pid, 0)[1] == 0
    return listener.appended(), listener.begun(), listener.locked()


def _enter_user_namespace() -> None:
    """Enter a user namespace, as a supervisor of an ordinary user does."""
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)  # it was cleared when the user changed
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
