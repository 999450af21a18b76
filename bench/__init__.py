"""Benchmark of Snakemake executors: local, cluster-generic and forge, alternating within one call.

Run it as ``python -m bench`` from the project's root; ``bench/README.md`` says what is measured and how to
read it.
"""
