"""Write the version of each package that the results depend on."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake  # noqa: TC004  (Snakemake puts it there at run time)

PACKAGES = (
    "scanpy",
    "igraph",
    "umap-learn",
    "pynndescent",
    "numba",
    "anndata",
    "scikit-learn",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
)
rows = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
Path(snakemake.output[0]).write_text("".join(f"{name}\t{value}\n" for name, value in rows.items()))
