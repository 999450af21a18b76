#!/usr/bin/env python3
"""Make airway.tsv.xz and samples.tsv again: `make.py DIRECTORY`, which holds two files of PyPI.

    pip download --no-deps --no-binary :all: inmoose==0.9.1   (its archive is enough: no build is needed)
    pip download --no-deps celltypist==1.7.1
    pip install anndata

The counts come from inmoose's airway.h5ad, without genes that have fewer than ten reads in all samples together; the names
of the genes come from GENCODE 44, as celltypist ships them.
"""

import csv
import hashlib
import io
import lzma
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import anndata

HERE = Path(__file__).parent
LEAST = 10
COLUMNS = ("cell", "dex", "SampleName")


def main(downloads: Path) -> None:
    """Write both tables and their checksums."""
    (archive,), (wheel,) = downloads.glob("inmoose-*.tar.gz"), downloads.glob("celltypist-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        text = opened.read("celltypist/data/samples/GENCODEv44_Gene_id2name.csv").decode()
    names = dict(csv.reader(io.StringIO(text)))
    with tarfile.open(archive) as opened, tempfile.NamedTemporaryFile(suffix=".h5ad") as copy:
        (member,) = (name for name in opened.getnames() if name.endswith("airway.h5ad"))
        copy.write(opened.extractfile(member).read())
        copy.flush()
        data = anndata.read_h5ad(copy.name)
    counts = data.X.astype(int)
    lines = ["\t".join(["gene", "name", *data.obs_names])]
    for gene, column in zip(data.var_names, counts.T, strict=True):
        if column.sum() >= LEAST:
            lines.append("\t".join([gene, names.get(gene, ""), *map(str, column)]))
    table = "".join(f"{line}\n" for line in lines).encode()
    (HERE / "airway.tsv.xz").write_bytes(lzma.compress(table, preset=9))
    rows = [
        ("sample", "donor", "dexamethasone", "geo"),
        *zip(data.obs_names, *(data.obs[name] for name in COLUMNS), strict=True),
    ]
    (HERE / "samples.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    sums = [
        f"{hashlib.sha256((HERE / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("airway.tsv.xz", "samples.tsv")
    ]
    (HERE / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
