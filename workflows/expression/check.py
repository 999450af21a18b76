#!/usr/bin/env python3
"""Check the biology in the results of this pipeline: `check.py RESULTS_DIR`. The exit code is 1 if anything is wrong.

KNOWN has known effects of dexamethasone in these cells. The check computes the direction of the strongest genes again from
the counts, donor by donor, without a model, and the accuracies from the predictions of single samples.
"""

import csv
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).parent / "data"
PNG = (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82")
# Himes et al. 2014 (doi:10.1371/journal.pone.0099625) found CRISPLD2; they name DUSP1, KLF15, PER1 and TSC22D3 as known
# before. The others are known targets of steroids, which lower VCAM1.
KNOWN = {
    "CRISPLD2": 1,
    "DUSP1": 1,
    "FKBP5": 1,
    "KLF15": 1,
    "PER1": 1,
    "TSC22D3": 1,
    "MAOA": 1,
    "SAMHD1": 1,
    "GPX3": 1,
    "VCAM1": -1,
}
STRONGEST = 40
Row = dict[str, str]


def read_table(path: Path) -> list[Row]:
    """The rows of a table with a header."""
    content = path.read_bytes()
    text = (lzma.decompress(content) if path.suffix == ".xz" else content).decode()
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))


def check_known(genes: dict[str, Row]) -> Iterator[str]:
    """Yield the known genes that are not found to be changed in the known direction."""
    present = KNOWN.keys() & genes.keys()
    if len(present) < 5:
        yield f"genes.tsv: only {len(present)} of {len(KNOWN)} known genes are in it; take more genes"
    for name in sorted(present):
        effect, sure = float(genes[name]["log2FoldChange"]), genes[name]["padj"]
        if effect * KNOWN[name] < 1 or sure == "NA" or float(sure) > 1e-6:
            yield f"genes.tsv: {name} has a fold change of {effect} (log2), adjusted p-value {sure}; expected {KNOWN[name]:+} or more"


def check_directions(rows: list[Row]) -> Iterator[str]:
    """Yield the strongest genes whose counts do not say the same in each of the four donors."""
    samples, counts = read_table(DATA / "samples.tsv"), read_table(DATA / "airway.tsv.xz")
    totals = {sample["sample"]: sum(int(row[sample["sample"]]) for row in counts) for sample in samples}
    by_gene = {row["gene"]: row for row in counts}
    for row in [row for row in rows if abs(float(row["log2FoldChange"])) >= 1][:STRONGEST]:
        shares: dict[str, dict[str, float]] = {}
        for sample in samples:
            share = int(by_gene[row["gene"]][sample["sample"]]) / totals[sample["sample"]]
            shares.setdefault(sample["donor"], {})[sample["dexamethasone"]] = share
        higher = [both["trt"] > both["untrt"] for both in shares.values()]
        if higher != [float(row["log2FoldChange"]) > 0] * 4:
            yield f"genes.tsv: {row['name'] or row['gene']} is said to change by {row['log2FoldChange']}, the donors' counts say {shares}"


def check_classifier(results: Path) -> Iterator[str]:
    """Yield errors of the classifier: it must tell the treatment in an unseen donor, and nothing else."""
    truth = {row["sample"]: int(row["dexamethasone"] == "trt") for row in read_table(DATA / "samples.tsv")}
    for row in read_table(results / "classifier.tsv"):
        name = f"classifier.tsv: {row['model']} with {row['features']} genes"
        single = read_table(results / "classify" / row["model"] / row["features"] / "true.tsv")
        if {line["sample"]: int(line["label"]) for line in single} != truth:
            yield f"{name}: was not trained with the true labels"
        right = sum(line["label"] == line["predicted"] for line in single) / len(single)
        if f"{right:.3f}" != row["accuracy"]:
            yield f"{name}: accuracy is {row['accuracy']}, the predictions say {right:.3f}"
        if right < 7 / 8 or int(row["as_good"]) > 0:
            yield f"{name}: {right:.3f} right, and {row['as_good']} of {row['false_labellings']} false labellings do as well"


def problems(results: Path) -> Iterator[str]:
    """Yield everything that is wrong."""
    for name in ("volcano.png", "classifier.png"):
        content = (results / name).read_bytes()
        if not content.startswith(PNG[0]) or not content.endswith(PNG[1]):
            yield f"{name}: not a whole picture"
    rows = read_table(results / "genes.tsv")
    yield from check_known({row["name"]: row for row in rows})
    yield from check_directions(rows)
    sure = sum(row["padj"] != "NA" and float(row["padj"]) < 0.05 for row in rows)
    if not 0.1 < sure / len(rows) < 0.7:
        yield f"genes.tsv: {sure} of {len(rows)} genes change; a fifth to a half is expected"
    yield from check_classifier(results)


def main() -> int:
    """Print what is wrong, or what was found."""
    results = Path(sys.argv[1])
    found = list(problems(results))
    for problem in found:
        print(f"check: {problem}", file=sys.stderr)
    if not found:
        rows, models = read_table(results / "genes.tsv"), read_table(results / "classifier.tsv")
        known = sorted({row["name"] for row in rows} & KNOWN.keys())
        print(f"check: {len(rows)} genes tested, {', '.join(known)} change as known; "
              f"{len(models)} classifier(s) tell the treatment in an unseen donor")  # fmt: skip
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
