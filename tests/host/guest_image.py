"""Builds the guest: kernel, initramfs and a Debian 12 root image with systemd, cgroup v2 and a user `tester`.

What goes into the image is in guest_files/. The image is rebuilt when this file or one of those changes.
"""

import hashlib
import os
import shlex
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from tests.host import guest_cache
from tests.host.guest_cache import GuestError, run
from tests.packages import install as apt_install

HERE = Path(__file__).parent
FILES = HERE / "guest_files"
RELEASE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {RELEASE} main"
DISK = 2 << 30  # bytes, sparse
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "crc32c_generic",
    "9p",
    "9pnet_virtio",
    "overlay",
    "fuse",
    "virtio_rng",
    "bfq",
    "quota_v2",
)
TESTER = 1000

# program on the host -> Debian package that has it
TO_BOOT = {"qemu-system-x86_64": "qemu-system-x86", "setpriv": "util-linux", "mke2fs": "e2fsprogs"}
TO_BUILD = {
    "mmdebstrap": "mmdebstrap",
    "depmod": "kmod",
    "cpio": "cpio",
    "gzip": "gzip",
    "xz": "xz-utils",
    "dpkg-deb": "dpkg",
    "chroot": "coreutils",
}


def image() -> AbstractContextManager[Path]:
    """Hold the directory with `vmlinux`, `initrd.gz` and `root.img`; built when there is none for this recipe."""
    digest = hashlib.sha256()
    for path in (Path(__file__), *sorted(FILES.iterdir())):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return guest_cache.entry("image", digest.hexdigest()[:16], build)


def install(programs: dict[str, str]) -> None:
    """Install the packages of those programs that are not there. Raise GuestError if that is impossible."""
    packages = sorted({package for program, package in programs.items() if not guest_cache.which(program)})
    if not packages:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    advice = f"The guest needs programs that this host lacks. As root, run: {shlex.join(command)}"
    if why := apt_install(packages):
        raise GuestError(f"{advice}\nInstalling them failed: {why}")


def build(directory: Path) -> None:
    """Build the guest into an empty directory."""
    if os.geteuid() != 0:
        raise GuestError(
            f"There is no guest image for this recipe in {guest_cache.root()}, and only root can build one.\n"
            f"As root, in {HERE.parents[1]}, run: "
            f"XDG_CACHE_HOME={guest_cache.root().parent} {sys.executable} -m tests.host.guest build"
        )
    install(TO_BOOT | TO_BUILD)
    if _mirror() == MIRROR and not Path(KEYRING).exists():
        install({KEYRING: "debian-archive-keyring"})
    tree, kernel = directory / "tree", directory / "kernel"
    _debootstrap(tree)
    for package in (tree / ".debs").glob("*.deb"):
        run(["dpkg-deb", "-x", package, kernel])
    shutil.rmtree(tree / ".debs")
    _kernel(kernel, directory / "vmlinux")
    _initramfs(kernel, directory / "initrd.gz")
    _customize(tree)
    make_disk(tree, directory / "root.img", DISK)
    shutil.rmtree(tree)
    shutil.rmtree(kernel)


def make_disk(tree: Path, disk: Path, size: int) -> None:
    """Make an ext4 image with the contents of a directory."""
    disk.touch()
    os.truncate(disk, size)
    features = [
        "-O",
        "^has_journal,^metadata_csum,^64bit",
        "-E",
        "lazy_itable_init=1,nodiscard,root_owner=0:0",
    ]
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-i", "8192", *features, "-d", tree, disk])


def _mirror() -> str:
    """Choose the host's own Debian sources when they fit (they name a mirror that works here), else Debian's."""
    release = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    if "ID=debian" in release and f"VERSION_CODENAME={RELEASE}" in release:
        for sources in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
            if Path(sources).exists():
                return sources
    return MIRROR


def _lines(name: str) -> list[str]:
    """Read the lines of a list in guest_files, without comments."""
    return [line for line in (FILES / name).read_text().splitlines() if line and not line.startswith("#")]


def _debootstrap(tree: Path) -> None:
    """Make a minimal Debian tree with the guest's packages, and its kernel package in .debs."""
    fetch = f'sh {shlex.quote(str(FILES / "fetch-kernel.sh"))} "$1"'
    options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    options += ["--dpkgopt=force-unsafe-io", '--aptopt=Apt::Install-Recommends "false"']
    options += [f"--include={','.join(_lines('packages.txt'))}", f"--customize-hook={fetch}"]
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", *options]
    run([*command, RELEASE, tree, _mirror()])


def _kernel(kernel: Path, vmlinux: Path) -> None:
    """Take the compression off the kernel: qemu starts an ELF kernel directly, which saves 2 s under TCG."""
    compressed = next((kernel / "boot").glob("vmlinuz-*"))
    data = compressed.read_bytes()
    start = data.find(b"\xfd7zXZ\0")
    payload = vmlinux.with_name("payload.xz")
    payload.write_bytes(data[start:])
    # xz stops at the end of the stream and fails on what follows it; the result says if it worked.
    run(["sh", "-c", 'xz -dcq --single-stream "$1" > "$2" || true', "sh", payload, vmlinux])
    payload.unlink()
    if vmlinux.read_bytes()[:4] != b"\x7fELF":
        shutil.copy(compressed, vmlinux)


def _module_order(modules: Path) -> list[str]:
    """List MODULES and what they depend on, as paths below the modules directory, in the order to load them."""
    lines = (line.split(":") for line in (modules / "modules.dep").read_text().splitlines())
    needs = {path: rest.split() for path, rest in lines}
    by_name = {Path(path).stem.replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in MODULES:
        path = by_name.get(name)  # absent: built into the kernel
        for item in [*reversed(needs[path]), path] if path else []:
            if item not in order:
                order.append(item)
    return order


def _initramfs(kernel: Path, initrd: Path) -> None:
    """Pack busybox, the kernel modules that mount the root disk, and guest_files/init.sh."""
    modules = next((kernel / "lib/modules").iterdir())
    run(["depmod", "-b", kernel, modules.name])
    top = initrd.with_name("initramfs")
    for name in ("bin", "proc", "sys", "dev", "lib", "newroot"):
        (top / name).mkdir(parents=True)
    shutil.copy(kernel / "bin/busybox", top / "bin/busybox")
    order = _module_order(modules)
    for path in order:
        shutil.copy(modules / path, top / "lib" / Path(path).name)
    (top / "lib/order").write_text("".join(f"{Path(path).name}\n" for path in order))
    shutil.copy(FILES / "init.sh", top / "init")
    (top / "init").chmod(0o755)
    run(["sh", "-c", 'find . | cpio -o -H newc --quiet | gzip -1 > "$1"', "sh", initrd], cwd=top)
    shutil.rmtree(top)


def _customize(tree: Path) -> None:
    """Add the user and the service that runs the host's script, and leave units out."""
    run(["chroot", tree, "useradd", "-m", "-u", str(TESTER), "-s", "/bin/bash", "tester"])
    units = tree / "etc/systemd/system"
    for name, place, mode in (
        ("forge-guest-run.sh", "usr/local/sbin/forge-guest-run", 0o755),
        ("as-tester.sh", "usr/local/bin/as-tester", 0o755),
        ("forge-guest.service", "etc/systemd/system/forge-guest.service", 0o644),
        ("delegate.conf", "etc/systemd/system/user@.service.d/delegate.conf", 0o644),
    ):
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(FILES / name, tree / place)
        (tree / place).chmod(mode)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/forge-guest.service").symlink_to("../forge-guest.service")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    for unit in _lines("masked-units.txt"):
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (tree / "var/lib/systemd/linger").mkdir(parents=True, exist_ok=True)
    (tree / "var/lib/systemd/linger/tester").touch()  # = loginctl enable-linger: the user's manager starts at boot
    # work: for the tests. Not /tmp or $HOME, which Forge treats in a special way.
    for name in ("host", "work"):
        (tree / name).mkdir()
    (tree / "work").chmod(0o1777)
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    for name, text in (("hostname", "forge-guest\n"), ("machine-id", "0123456789abcdef" * 2 + "\n")):
        (tree / "etc" / name).write_text(text)
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 forge-guest\n")
    (tree / "etc/fstab").write_text("")
    (tree / "etc/resolv.conf").write_text("")
