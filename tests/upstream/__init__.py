"""Snakemake's own feature tests with ``forge`` instead of ``local``: see README.md."""
