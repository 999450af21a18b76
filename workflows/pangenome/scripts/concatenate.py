"""Put the alignments of single genes one behind the other, genome by genome."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

whole: dict[str, list[str]] = {genome: [] for genome in snakemake.params.genomes}
for path in snakemake.input:
    lengths = set()
    for record in Path(path).read_text().split(">")[1:]:
        genome, *lines = record.splitlines()
        whole[genome.strip()].append("".join(lines))
        lengths.add(len(whole[genome.strip()][-1]))
    if len(lengths) != 1 or len({len(parts) for parts in whole.values()}) != 1:
        raise ValueError(f"{path}: not one aligned gene of each genome")
Path(snakemake.output[0]).write_text("".join(f">{genome}\n{''.join(parts)}\n" for genome, parts in whole.items()))
