"""Count variants, genotypes, transitions and transversions of each sample."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

Row = dict[str, str]
TRANSITIONS = {frozenset("AG"), frozenset("CT")}


def read_table(path: str) -> list[Row]:
    """The rows of a table with a header."""
    with open(path, newline="") as table:
        return list(csv.DictReader(table, delimiter="\t"))


def genotype(call: str) -> str:
    """The kind of a VCF genotype."""
    alleles = call.replace("|", "/").split("/")
    if "." in alleles:
        return "missing"
    if set(alleles) == {"0"}:
        return "hom_ref"
    return "hom_alt" if len(set(alleles)) == 1 else "het"


def ratio(top: float, bottom: float) -> str:
    """A quotient to print."""
    return f"{top / bottom:.2f}" if bottom else "NA"


def summary(sample: str, variants: list[Row], quality: Row) -> dict[str, object]:
    """The row of one sample; a variant counts for it where it has the other allele, and passed the filter."""
    passed = [row for row in variants if row["FILTER"] == "PASS"]
    kinds = [genotype(row[f"{sample}.GT"]) for row in passed]
    carried = [row for row, kind in zip(passed, kinds, strict=True) if kind in ("het", "hom_alt")]
    single = [row for row in carried if len(row["REF"]) == len(row["ALT"]) == 1]
    transitions = sum(frozenset(row["REF"] + row["ALT"]) in TRANSITIONS for row in single)
    depths = [int(row[f"{sample}.DP"]) for row in passed]
    return {
        "sample": sample,
        "variants": len(carried),
        "snvs": len(single),
        "indels": len(carried) - len(single),
        "transitions": transitions,
        "transversions": len(single) - transitions,
        "ts_tv": ratio(transitions, len(single) - transitions),
        **{kind: kinds.count(kind) for kind in ("hom_ref", "het", "hom_alt", "missing")},
        "low_quality": len(variants) - len(passed),
        "depth_at_variants": ratio(sum(depths), len(depths)),
        "depth_mean": quality["depth_mean"],
        "covered_5x": quality["covered_5x"],
        "reads": quality["reads"],
        "duplicates": quality["duplicates"],
    }


def main(samples: list[str], variants: str, qc: str, output: str, log: str) -> None:
    """Write a row for each sample."""
    calls = read_table(variants)
    quality = {row["sample"]: row for row in read_table(qc)}
    rows = [summary(sample, calls, quality[sample]) for sample in samples]
    with open(output, "w", newline="") as table:
        writer = csv.DictWriter(table, rows[0].keys(), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    Path(log).write_text(f"{len(calls)} variants in {len(rows)} samples\n")


main(
    samples=snakemake.params.samples,
    variants=snakemake.input.variants,
    qc=snakemake.input.qc,
    output=snakemake.output[0],
    log=snakemake.log[0],
)
