"""Number the gene families, count each genome's genes of each, and write out the families that every genome has once."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)


def read_fasta(path: str) -> dict[str, str]:
    """Name → sequence, without the end marks of genes that run out of the sequence."""
    found: dict[str, list[str]] = {}
    for line in Path(path).read_text().splitlines():
        if line.startswith(">"):
            parts = found.setdefault(line[1:], [])
        else:
            parts.append(line)
    return {name: "".join(parts) for name, parts in found.items()}


def place(gene: str, genomes: list[str]) -> tuple[int, int]:
    """The position of a gene in the order of the genomes."""
    genome, _, number = gene.rpartition("_")
    return genomes.index(genome), int(number)


def main(clusters: str, genes: list[str], table: str, core: str, genomes: list[str], most: int) -> None:
    """Write the table and the core families."""
    sequences = {name: sequence for path in genes for name, sequence in read_fasta(path).items()}
    members: dict[str, list[str]] = defaultdict(list)
    for line in Path(clusters).read_text().splitlines():
        head, member = line.split("\t")
        members[head].append(member)
    ordered = [sorted(family, key=lambda gene: place(gene, genomes)) for family in members.values()]
    ordered.sort(key=lambda family: place(family[0], genomes))
    lines = ["\t".join(["family", *genomes, "genes"])]
    once = []
    for number, family in enumerate(ordered, 1):
        counts = [sum(gene.rpartition("_")[0] == genome for gene in family) for genome in genomes]
        lines.append("\t".join([f"family{number:05d}", *map(str, counts), ",".join(family)]))
        if counts == [1] * len(genomes):
            once.append((f"family{number:05d}", family))
    Path(table).write_text("".join(f"{line}\n" for line in lines))
    step = max(1, len(once) // most) if most else 1  # spread over the genome, not its first genes
    chosen = once[::step][: most or None]
    if not chosen:
        raise ValueError(f"no family is in every genome once ({len(ordered)} families): take more bases")
    folder = Path(core)
    folder.mkdir(parents=True, exist_ok=True)
    for name, family in chosen:
        text = "".join(f">{gene.rpartition('_')[0]}\n{sequences[gene]}\n" for gene in family)
        (folder / f"{name}.fna").write_text(text)


main(
    clusters=snakemake.input.clusters,
    genes=list(snakemake.input.genes),
    table=snakemake.output.table,
    core=snakemake.output.core,
    genomes=list(snakemake.params.genomes),
    most=snakemake.params.most,
)
