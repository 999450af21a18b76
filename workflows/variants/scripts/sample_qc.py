"""Condense flagstat, stats and depth of one sample to one row."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)


def read_flagstat(path: str) -> dict[str, int]:
    """The counts of `samtools flagstat -O tsv` (reads that passed quality control), by name."""
    with open(path, newline="") as table:
        rows = csv.reader(table, delimiter="\t")
        return {name: int(passed) for passed, _, name in rows if passed.isdigit()}


def read_stats(path: str) -> dict[str, float]:
    """The summary numbers (SN) of `samtools stats`, by name."""
    numbers = {}
    for line in Path(path).read_text().splitlines():
        if line.startswith("SN\t"):
            _, name, value, *_ = line.split("\t")
            numbers[name.rstrip(":")] = float(value)
    return numbers


def read_depth(path: str) -> list[int]:
    """The depth at each base of the reference."""
    return [int(line.split("\t")[2]) for line in Path(path).read_text().splitlines()]


def main(sample: str, flagstat: str, stats: str, depth: str, output: str, log: str) -> None:
    """Read the three reports and write the row."""
    flags, numbers, depths = read_flagstat(flagstat), read_stats(stats), read_depth(depth)
    row = {
        "sample": sample,
        "reads": flags["primary"],
        "mapped": flags["primary mapped"],
        "properly_paired": flags["properly paired"],
        "duplicates": flags["primary duplicates"],
        "error_rate": f"{numbers['error rate']:.5f}",
        "insert_size_mean": f"{numbers['insert size average']:.1f}",
        "depth_mean": f"{sum(depths) / len(depths):.2f}",
        "depth_max": max(depths),
        "covered_1x": f"{sum(depth >= 1 for depth in depths) / len(depths):.4f}",
        "covered_5x": f"{sum(depth >= 5 for depth in depths) / len(depths):.4f}",
    }
    lines = ("\t".join(map(str, cells)) for cells in (row.keys(), row.values()))
    Path(output).write_text("".join(f"{line}\n" for line in lines))
    Path(log).write_text(f"{len(depths)} bases, {len(numbers)} numbers, {len(flags)} flags\n")


main(
    sample=snakemake.wildcards.sample,
    flagstat=snakemake.input.flagstat,
    stats=snakemake.input.stats,
    depth=snakemake.input.depth,
    output=snakemake.output[0],
    log=snakemake.log[0],
)
