"""Write the variants of a VCF as a plain table: a row each, with genotype, depth and quality by sample."""

import csv
import gzip
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

FIELDS = ("GT", "DP", "GQ")


def rows(path: str) -> list[dict[str, str]]:
    """The variants of a compressed VCF (BGZF is gzip)."""
    found = []
    samples: list[str] = []
    with gzip.open(path, "rt") as vcf:
        for line in vcf:
            cells = line.rstrip("\n").split("\t")
            if line.startswith("#CHROM"):
                samples = cells[9:]
            if line.startswith("#"):
                continue
            chrom, position, _, ref, alt, quality, passed, info, layout = cells[:9]
            depth = dict(item.partition("=")[::2] for item in info.split(";"))["DP"]
            row = {"CHROM": chrom, "POS": position, "REF": ref, "ALT": alt, "QUAL": quality, "FILTER": passed}
            row["DP"] = depth
            for sample, values in zip(samples, cells[9:], strict=True):
                call = dict(zip(layout.split(":"), values.split(":"), strict=False))
                row |= {f"{sample}.{field}": call[field] for field in FIELDS}
            found.append(row)
    return found


def main(vcf: str, samples: list[str], output: str, log: str) -> None:
    """Read the VCF and write the table, with its header even if there is no variant."""
    columns = ["CHROM", "POS", "REF", "ALT", "QUAL", "FILTER", "DP"]
    columns += [f"{sample}.{field}" for sample in samples for field in FIELDS]
    variants = rows(vcf)
    with open(output, "w", newline="") as table:
        writer = csv.DictWriter(table, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(variants)
    Path(log).write_text(f"{len(variants)} variants\n")


main(
    vcf=snakemake.input[0],
    samples=snakemake.params.samples,
    output=snakemake.output[0],
    log=snakemake.log[0],
)
