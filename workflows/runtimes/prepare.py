"""Make the catalog of this workflow, and the conda channel, image and requirements file that it names.

    python workflows/runtimes/prepare.py DIRECTORY

If your machine can reach bioconda, an environment file with ``channels: [conda-forge, bioconda]`` replaces this channel,
and ``container: quay.io/biocontainers/…`` this image. Needs root, py-rattler, and Debian's packages samtools, bcftools,
podman and mmdebstrap.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.conda.channel import environment_file, make_channel

CATALOG = """\
version: 1
defaults: {memory: 500MiB, wall: 10m, network: off}
runtimes:
  tools: {conda: tools.yaml, env: {LC_ALL: C.UTF-8}}
  bed: {container: "oci-archive:bed.tar"}
  py: {venv: requirements.txt}
rules: {"conda_*": tools, "image_*": bed, "python_*": py}
"""
PACKAGES = "dash,bash,coreutils,mawk,bedtools"


def make_image(directory: Path) -> None:
    """An OCI archive with Debian's bedtools."""
    tree, archive = directory / "tree.tar", directory / "bed.tar"
    run = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={PACKAGES}", "--mode=root", "bookworm", str(tree)]
    run += ["--extract-hook=ln -s mawk $1/usr/bin/awk"]  # its own installation would do this
    subprocess.run(run, check=True)
    imported = subprocess.run(
        ["podman", "import", "--quiet", str(tree)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()[-1]
    try:
        subprocess.run(
            ["podman", "save", "--quiet", "--format", "oci-archive", "-o", str(archive), imported], check=True
        )
    finally:
        subprocess.run(["podman", "rmi", "--force", imported], check=False, stdout=subprocess.DEVNULL)
        tree.unlink()


def main() -> None:
    """Make all parts that are missing."""
    directory = Path(sys.argv[1]).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "channel").exists():
        channel = make_channel(directory / "channel")
        (directory / "tools.yaml").write_text(environment_file(channel, "samtools", "bcftools"))
    if not (directory / "bed.tar").exists():
        make_image(directory)
    (directory / "requirements.txt").write_text("pysam>=0.22\n")
    (directory / "forge.yaml").write_text(CATALOG)


if __name__ == "__main__":
    main()
