"""Count calls and reads with the pysam of this script's own environment."""

import os
import sys
from pathlib import Path

import pysam


def count(path: str) -> int:
    """Count the records of a VCF file."""
    with pysam.VariantFile(path) as calls:
        return sum(1 for _ in calls)


rows = [("calls", count(snakemake.input.calls)), ("covered calls", count(snakemake.input.covered))]
for path in snakemake.input.bams:
    with pysam.AlignmentFile(path) as reads:
        rows.append((f"mapped reads of {Path(path).stem}", reads.mapped))
rows.append(("runtime", os.environ["FORGE_RUNTIME"]))
rows.append(("own interpreter", "yes" if sys.prefix == os.environ["VIRTUAL_ENV"] else "no"))
Path(snakemake.output[0]).write_text("".join(f"{name}\t{value}\n" for name, value in rows))
