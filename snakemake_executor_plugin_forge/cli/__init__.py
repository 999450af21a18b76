"""``snakemake-forge``: parse, call, print. Each command runs in a process of its own."""

import sys

from ..kernel.imports import own_path

sys.path[:] = own_path(sys.path)  # before anything else is imported
