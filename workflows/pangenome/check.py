#!/usr/bin/env python3
"""Check the biology in the results of this pipeline: `check.py RESULTS_DIR`. The exit code is 1 if anything is wrong.

The two strains of sequence type 23 must be neighbours in the tree, and closest in the genes' own letters. The short words (21
bases) that whole genomes share must confirm this, without genes, alignments or a tree.
"""

import csv
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PNG = (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82")
SISTERS = frozenset({"NTUH-K2044", "Kp1084"})  # both ST23
GENOMES = ("HS11286", "MGH78578", "NTUH-K2044", "Kp1084")
CODE = {"ATG", "GTG", "TTG"}  # start codons of bacteria
WORD = re.compile(r"(?=(GATC[ACGT]{17}))")  # one of 256 words
COMPLEMENT = str.maketrans("ACGT", "TGCA")


def read_fasta(path: Path) -> dict[str, str]:
    """Name → sequence, in capitals."""
    records = (record.splitlines() for record in path.read_text().split(">")[1:])
    return {name.strip(): "".join(lines).upper() for name, *lines in records}


def closest(distances: dict[frozenset[str], float]) -> frozenset[str]:
    """The pair of the smallest distance."""
    return min(distances, key=lambda pair: distances[pair])


def pairs(values: dict[str, object], distance: object) -> dict[frozenset[str], float]:
    """Each pair of genomes with its distance."""
    return {frozenset(pair): distance(*(values[name] for name in pair)) for pair in itertools.combinations(values, 2)}


def words(genes: dict[str, str]) -> set[str]:
    """A sample of the words of a genome's genes, on both strands."""
    both = (strand for gene in genes.values() for strand in (gene, gene.translate(COMPLEMENT)[::-1]))
    return {word for strand in both for word in WORD.findall(strand)}


def check_tree(results: Path) -> Iterator[str]:
    """Yield where tree, alignment and words do not find the sisters."""
    newick = (results / "tree.nwk").read_text()
    if set(re.findall(r"[(,]([^(),:]+):", newick)) != set(GENOMES):
        yield f"tree.nwk: does not hold the four genomes: {newick}"
    inner = re.search(r"\(([^(),:]+):[^(),]+,([^(),:]+):[^(),]+\)[0-9.]*:", newick)
    split = frozenset(inner.groups()) if inner else frozenset()
    if split not in {SISTERS, frozenset(GENOMES) - SISTERS}:
        yield f"tree.nwk: {' and '.join(sorted(SISTERS))} (both ST23) are not neighbours: {newick}"
    core = read_fasta(results / "core.fna")
    differ = pairs(core, lambda a, b: sum(x != y for x, y in zip(a, b, strict=True)) / len(a))
    if closest(differ) != SISTERS:
        yield f"core.fna: the fewest letters differ between {' and '.join(sorted(closest(differ)))}"
    if max(differ.values()) > 0.05:
        yield f"core.fna: {max(differ.values()):.1%} of the letters differ; strains of one species differ by less than 5%"
    sampled = {name: words(read_fasta(results / "genes" / f"{name}.ffn")) for name in GENOMES}
    unshared = pairs(sampled, lambda a, b: 1 - len(a & b) / len(a | b))
    if closest(unshared) != SISTERS:
        yield f"genes: the most words are shared by {' and '.join(sorted(closest(unshared)))}"


def check_families(results: Path) -> Iterator[str]:
    """Yield errors of the genes and their families."""
    with (results / "families.tsv").open(newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    genes = {name: gene for genome in GENOMES for name, gene in read_fasta(results / "genes" / f"{genome}.ffn").items()}
    if sorted(gene for row in rows for gene in row["genes"].split(",")) != sorted(genes):
        yield "families.tsv: not every gene is in one family"
    starts = sum(gene[:3] in CODE and len(gene) % 3 == 0 for gene in genes.values()) / len(genes)
    if starts < 0.98:
        yield f"genes: only {starts:.1%} are whole codons from a start"
    core = sum(all(int(row[genome]) > 0 for genome in GENOMES) for row in rows)
    if not 0.5 < core / (len(genes) / len(GENOMES)) < 0.98:
        yield f"families.tsv: {core} families are in all genomes, of {len(genes) // 4} genes in one; 50 to 98% is expected"
    for path in (results / "core").glob("family*.fna"):
        aligned = read_fasta(results / "aligned" / path.name)
        if {name: gene.replace("-", "") for name, gene in aligned.items()} != read_fasta(path):
            yield f"aligned/{path.name}: not the genes that went in"


def main() -> int:
    """Print what is wrong, or what was found."""
    results = Path(sys.argv[1])
    found = [*check_families(results), *check_tree(results)]
    picture = (results / "pangenome.png").read_bytes()
    if not picture.startswith(PNG[0]) or not picture.endswith(PNG[1]):
        found.append("pangenome.png: not a whole picture")
    for problem in found:
        print(f"check: {problem}", file=sys.stderr)
    if not found:
        count = len(list((results / "aligned").glob("*.fna")))
        print(
            f"check: {' and '.join(sorted(SISTERS))} (ST23) are neighbours by {count} core genes, by letters and by words"
        )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
