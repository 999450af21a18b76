"""Write the tool set and the version of each program in it as a table."""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)


def first_version(command: str) -> str:
    """The version that a program reports, on either stream."""
    result = subprocess.run(command, shell=True, capture_output=True, check=False)
    text = (result.stdout + result.stderr).decode(errors="replace")
    found = re.search(r"^(?:Version: |\w+ )v?(\d\S*)", text, re.MULTILINE)
    if not found:
        raise RuntimeError(f"{command}: no version in {text!r}")
    return found[1]


def main(tools: str, samtools: str, bcftools: str, output: str, log: str) -> None:
    """Ask each program and write the answers."""
    rows = {"tools": tools}
    if tools == "native":
        rows["bwa"] = first_version("bwa")
    else:
        rows |= {name: version(name) for name in ("mappy", "pysam")}
    rows["samtools"] = first_version(f"{samtools} --version")
    rows["bcftools"] = first_version(f"{bcftools} --version")
    rows["matplotlib"] = version("matplotlib")
    Path(output).write_text("".join(f"{name}\t{value}\n" for name, value in rows.items()))
    Path(log).write_text(f"{len(rows)} entries\n")


main(
    tools=snakemake.params.tools,
    samtools=snakemake.params.samtools,
    bcftools=snakemake.params.bcftools,
    output=snakemake.output[0],
    log=snakemake.log[0],
)
