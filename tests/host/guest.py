"""A Debian 12 guest with systemd and pure cgroup v2 to try containment in, under qemu.

    python -m tests.host.guest build         build the guest (the first run also does so)
    python -m tests.host.guest run SCRIPT    boot, run SCRIPT as root in the guest, print its output, power off

In the guest SCRIPT finds the checkout, the host's Python and the virtual environment at the same absolute
paths as on the host, read-only; the variables FORGE_GUEST=1, FORGE_GUEST_CHECKOUT and FORGE_GUEST_PYTHON; a
directory /host that it shares with the host; a directory /work on ext4 that all users can write to; and the
command `as-tester COMMAND`, which runs COMMAND as an ordinary user with a delegated cgroup. A SCRIPT of one test:

    cd "$FORGE_GUEST_CHECKOUT"
    export PYTEST_TIMEOUT=1500 FORGE_TEST_PATIENCE=5 HYPOTHESIS_STORAGE_DIRECTORY=/work/hypothesis
    "$FORGE_GUEST_PYTHON" -m pytest -p no:cacheprovider --basetemp=/work/tmp tests/integration/test_containment.py -k oom_hidden
"""

import argparse
import compileall
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.host import guest_image, guest_python
from tests.host.guest_cache import GuestError, which

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND_LINE = (
    "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on systemd.show_status=0 "
    "systemd.unified_cgroup_hierarchy=1"
)
CGROUP_V1 = "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
"""Makes systemd mount version 1 instead, as the last kernel parameters."""
SLOW_BYTES = 64 << 20
SLOW = "throttling.iops-total=200"
"""Options of a slow disk, on which two jobs must wait for each other: test_io_weight.py."""


@dataclass(frozen=True)
class Result:
    """The result of one run in the guest."""

    status: int
    output: str  # of the script, both streams
    console: str  # of the kernel and systemd
    seconds: float


def boot(
    script: str,
    share: Path,
    *,
    timeout: float = 900,
    memory: str = "1536M",
    cpus: int = 2,
    kernel: str = "",
    disk: Path | None = None,
) -> Result:
    """Boot the guest, run a script as root in it and power it off.

    `share` is the directory of the host that the guest sees as /host, `kernel` is added to the kernel's command
    line, `disk` is an image that the guest sees as /dev/vdd and that keeps its writes. Raise GuestError when
    there is no guest or when it ends without the script's exit status.
    """
    prepare()
    control = share / ".guest"
    control.mkdir(parents=True)
    _slow_disk(control)
    (control / "script").write_text(script)
    (control / "env").write_text(_environment(timeout))
    (control / "mounts").write_text(_mounts())
    with guest_image.image() as image, guest_python.disk() as python:  # held, so that none is removed
        command = _qemu(image, python, share, ["-m", memory, "-smp", str(cpus)], f"{COMMAND_LINE} {kernel}")
        if disk is not None:
            command += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
        start = time.monotonic()
        ended = _run(command, control / "console", timeout)
        return _result(control, ended, time.monotonic() - start)


def prepare() -> None:
    """Build the images of the guest if they are missing. Raise GuestError if that fails."""
    guest_image.install(guest_image.TO_BOOT)
    _compile()
    with guest_image.image(), guest_python.disk():
        pass


def _slow_disk(control: Path) -> None:
    """Make a file system with two files for tests to read, which have blocks and no holes."""
    tree = control / "slow"
    tree.mkdir()
    for name in ("1000", "50"):
        (tree / name).write_bytes(os.urandom(SLOW_BYTES // 8))
    guest_image.make_disk(tree, control / "slow.img", SLOW_BYTES)


def _compile() -> None:
    """Compile the checkout's packages here: the guest would do it slowly, and again at each start."""
    for package in CHECKOUT.glob("*/__init__.py"):
        compileall.compile_dir(package.parent, quiet=2)


def _mounts() -> str:
    """List the guest's mounts, in the form that guest_files/forge-guest-run.sh reads."""
    wanted = [("9p", "checkout", CHECKOUT), *(("disk", name, path) for name, path in guest_python.places())]
    for _, _, path in wanted:
        if re.search(r"[\s,]", str(path)):
            raise GuestError(f"the path {path} cannot be shown to the guest: use one without blanks and commas")
    wanted.sort(key=lambda item: item[2])  # a directory before its contents
    return "".join(f"{kind}\t{source}\t{path}\n" for kind, source, path in wanted)


def _environment(timeout: float) -> str:
    """Write shell assignments for the script's environment."""
    variables = {
        "FORGE_GUEST": "1",
        "FORGE_GUEST_CHECKOUT": str(CHECKOUT),
        "FORGE_GUEST_PYTHON": str(Path(sys.prefix) / "bin/python3"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "FORGE_GUEST_SECONDS": f"{timeout:.0f}",
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def _accelerator() -> list[str]:
    """Choose KVM if it works, else emulation. /dev/kvm alone proves nothing: the CPU must say that it can."""
    with contextlib.suppress(OSError):
        if os.access("/dev/kvm", os.R_OK | os.W_OK) and re.search(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text()):
            return ["-accel", "kvm", "-cpu", "host"]
    # Nehalem: the oldest CPU that today's binary wheels (numpy) run on; more features make emulation slower
    return ["-accel", "tcg,thread=multi", "-cpu", "Nehalem"]


def _qemu(image: Path, python: Path, share: Path, size: list[str], line: str) -> list[str]:
    """Return the command that boots the guest. setpriv ends qemu when this process ends, however it does."""
    qemu = which("qemu-system-x86_64") or "qemu-system-x86_64"
    command = [which("setpriv") or "setpriv", "--pdeathsig", "KILL", qemu, "-M", "pc", *_accelerator(), *size]
    command += ["-nodefaults", "-display", "none", "-monitor", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", f"{image}/vmlinux", "-initrd", f"{image}/initrd.gz", "-append", line]
    command += ["-device", "virtio-rng-pci"]
    # /dev/vda and /dev/vdb; the guest's writes are discarded
    for disk in (f"{image}/root.img", f"{python}/python.img"):
        command += ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on,cache=unsafe"]
    command += ["-drive", f"file={share}/.guest/slow.img,format=raw,if=virtio,cache=unsafe,{SLOW}"]  # /dev/vdc
    for tag, path, readonly in (("host", share, "off"), ("checkout", CHECKOUT, "on")):
        options = f"path={path},security_model=none,multidevs=remap,readonly={readonly}"
        command += ["-fsdev", f"local,id={tag},{options}"]
        command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return command


def _run(command: list[str], console: Path, timeout: float) -> str:
    """Run qemu to its end; return in words how it ended."""
    with console.open("wb") as stream:
        try:
            done = subprocess.run(
                command, check=False, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return f"was stopped after {timeout:.0f} s"
        except OSError as error:
            return f"could not be started: {error}"
    return f"ended with status {done.returncode}"


def _result(control: Path, ended: str, seconds: float) -> Result:
    """Read the results that the guest left."""

    def read(name: str) -> str:
        path = control / name
        return path.read_text(errors="replace") if path.exists() else ""

    status = read("status").strip()
    if not status:
        raise GuestError(
            f"The guest did not finish its script: qemu {ended}, {seconds:.0f} s after the start.\n"
            f"--- the script's output, last lines ({control / 'output'})\n{tail(read('output'))}\n"
            f"--- processes half a minute before the end\n{read('processes')}"
            f"--- the console, last lines ({control / 'console'})\n{tail(read('console'))}"
        )
    return Result(int(status), read("output"), read("console"), seconds)


def tail(text: str, lines: int = 40) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.splitlines()[-lines:])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m tests.host.guest", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build")
    run = commands.add_parser("run")
    run.add_argument("script", type=Path)
    run.add_argument("--timeout", type=float, default=900, help="seconds until the guest is stopped")
    chosen = parser.parse_args()
    try:
        if chosen.command == "build":
            with guest_image.image() as image, guest_python.disk() as python:
                print(image, python, sep="\n")
            return 0
        share = Path(tempfile.mkdtemp(prefix="forge-guest-"))
        result = boot(chosen.script.read_text(), share, timeout=chosen.timeout)
    except GuestError as error:
        print(error, file=sys.stderr)
        return 125
    sys.stdout.write(result.output)
    print(f"guest: exit status {result.status}, {result.seconds:.1f} s, /host is in {share}", file=sys.stderr)
    return result.status


if __name__ == "__main__":
    sys.exit(main())
