#!/usr/bin/env python3
"""Compare the results of this pipeline with the expected ones: `check.py RESULTS_DIR [--exact]`.

It always compares the results on which both tool sets agree: positions, alleles and genotypes of the variants.
The table and the summary must agree with the VCF, and every file must be whole. Depths, qualities and the
edges of the regions differ between the tool sets and may change with a version. `--exact` compares the
checksum of every file too, which holds for the versions in expected/<tools>/software.tsv. The exit code is 1
if anything differs.
"""

import argparse
import csv
import gzip
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

EXPECTED = Path(__file__).parent / "expected"
SITE = ("CHROM", "POS", "REF", "ALT")
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
WHOLE = {  # beginning and end of a complete file
    "joint.vcf.gz": (b"\x1f\x8b", BGZF_END),
    "joint.vcf.gz.tbi": (b"\x1f\x8b", BGZF_END),
    "coverage.png": (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"),
    "coverage.svg": (b"<?xml", b"</svg>\n"),
    "variants.tsv": (b"CHROM\t", b"\n"),
    "summary.tsv": (b"sample\t", b"\n"),
    "qc.tsv": (b"sample\t", b"\n"),
    "software.tsv": (b"tools\t", b"\n"),
}
Site = tuple[str, ...]
Genotypes = dict[Site, dict[str, str]]


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a header."""
    with path.open(newline="") as table:
        return list(csv.DictReader(table, delimiter="\t"))


def table_genotypes(path: Path) -> Genotypes:
    """Site → sample → genotype, from a table whose genotype columns end in `.GT`."""
    found: Genotypes = {}
    for row in read_table(path):
        site = tuple(row[name] for name in SITE)
        found[site] = {name.removesuffix(".GT"): row[name] for name in row if name.endswith(".GT")}
    return found


def vcf_genotypes(path: Path) -> tuple[Genotypes, set[Site]]:
    """Site → sample → genotype, from a VCF; and the sites that pass its filter."""
    found: Genotypes = {}
    passed: set[Site] = set()
    samples: list[str] = []
    with gzip.open(path, "rt") as vcf:
        for line in vcf:
            cells = line.rstrip("\n").split("\t")
            if line.startswith("#CHROM"):
                samples = cells[9:]
            elif not line.startswith("#"):
                site = (cells[0], cells[1], cells[3], cells[4])
                place = cells[8].split(":").index("GT")
                calls = (cell.split(":")[place] for cell in cells[9:])
                found[site] = dict(zip(samples, calls, strict=True))
                if cells[6] == "PASS":
                    passed.add(site)
    return found, passed


def compare_genotypes(found: Genotypes, expected: Genotypes, where: str) -> Iterator[str]:
    """Yield missing, additional and different entries."""
    for site in sorted(expected.keys() | found.keys(), key=lambda site: (site[0], int(site[1]), site[2:])):
        name = "{}:{} {}>{}".format(*site)
        if site not in found:
            yield f"{where}: {name} is missing"
        elif site not in expected:
            yield f"{where}: {name} is not expected"
        elif found[site] != expected[site]:
            yield f"{where}: {name} has genotypes {found[site]}, expected {expected[site]}"


def compare_summary(rows: list[dict[str, str]], genotypes: Genotypes, passed: set[Site]) -> Iterator[str]:
    """Yield values of the summary that do not follow from the VCF."""
    samples = {sample for calls in genotypes.values() for sample in calls}
    if {row["sample"] for row in rows} != samples:
        yield f"summary.tsv: the samples are not those of joint.vcf.gz ({', '.join(sorted(samples))})"
        return
    for row in rows:
        alleles = [set(genotypes[site][row["sample"]].replace("|", "/").split("/")) for site in passed]
        counts = {
            "hom_ref": sum(found == {"0"} for found in alleles),
            "het": sum(len(found) > 1 and "." not in found for found in alleles),
            "hom_alt": sum(len(found) == 1 and not found & {"0", "."} for found in alleles),
        }
        counts["variants"] = counts["het"] + counts["hom_alt"]
        for name, count in counts.items():
            if row[name] != str(count):
                yield f"summary.tsv: {row['sample']} has {name} = {row[name]}, joint.vcf.gz says {count}"


def compare_whole(results: Path) -> Iterator[str]:
    """Yield the files that are absent or cut off."""
    for name, (start, end) in WHOLE.items():
        path = results / name
        if not path.is_file():
            yield f"{name}: there is no such file in {results}"
        elif not (content := path.read_bytes()).startswith(start) or not content.endswith(end):
            yield f"{name}: not a whole file of its kind ({len(content)} bytes)"


def compare_exactly(results: Path, tools: str) -> Iterator[str]:
    """Yield the files whose bytes differ from the recorded ones."""
    folder = EXPECTED / tools
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        checksum, name = line.split(maxsplit=1)
        path = results / name
        if not path.is_file():
            yield f"{name}: there is no such file"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != checksum:
            yield f"{name}: other bytes than expected"
    if (results / "software.tsv").read_bytes() != (folder / "software.tsv").read_bytes():
        yield f"software.tsv: made with other versions than {folder / 'software.tsv'}, so bytes may differ"


def differences(results: Path, exact: bool) -> Iterator[str]:
    """Yield every difference; nothing else can be said about results that are not whole."""
    broken = list(compare_whole(results))
    yield from broken
    if broken:
        return
    genotypes, passed = vcf_genotypes(results / "joint.vcf.gz")
    yield from compare_genotypes(genotypes, table_genotypes(EXPECTED / "variants.tsv"), "joint.vcf.gz")
    yield from compare_genotypes(table_genotypes(results / "variants.tsv"), genotypes, "variants.tsv")
    yield from compare_summary(read_table(results / "summary.tsv"), genotypes, passed)
    if exact:
        yield from compare_exactly(results, tools_of(results))


def tools_of(results: Path) -> str:
    """The tool set that made the results."""
    return (results / "software.tsv").read_text().split()[1]


def main() -> int:
    """Print every difference, or that there is none."""
    parser = argparse.ArgumentParser(description="Compare results of this pipeline with the expected ones.")
    parser.add_argument("results", type=Path, metavar="RESULTS_DIR", help="the folder `results` of a run")
    parser.add_argument("--exact", action="store_true", help="compare every byte too (same versions needed)")
    options = parser.parse_args()
    found = list(differences(options.results, options.exact))
    for difference in found:
        print(difference, file=sys.stderr)
    if found:
        print(f"check: {len(found)} differences in {options.results}", file=sys.stderr)
        return 1
    count = len(table_genotypes(EXPECTED / "variants.tsv"))
    print(f"check: {count} variants as expected in {options.results} (tools: {tools_of(options.results)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
