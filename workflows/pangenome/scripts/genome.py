"""Unpack a genome, or cut the same piece out of its circular chromosome, whatever its direction."""

import lzma
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

COMPLEMENT = str.maketrans("ACGTRYKMBDHV", "TGCAYRMKVHDB")


def piece(chromosome: str, anchor: str, bases: int) -> str:
    """The first bases from the anchor on, on the strand that holds it."""
    for strand in (chromosome, chromosome.translate(COMPLEMENT)[::-1]):
        start = strand.find(anchor)
        if start >= 0:
            return (strand[start:] + strand[:start])[:bases]
    raise ValueError(f"the anchor {anchor} is on neither strand")


with lzma.open(snakemake.input.packed, "rt") as packed:
    text = packed.read()
if snakemake.params.bases:
    header, *lines = text[1:].partition(">")[0].splitlines()
    text = f">{header}\n{piece(''.join(lines), snakemake.params.anchor, snakemake.params.bases)}\n"
with open(snakemake.output[0], "w") as output:
    output.write(text)
