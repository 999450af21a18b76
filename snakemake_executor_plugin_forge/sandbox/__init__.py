"""What encloses a job: control groups, namespaces, mounts, privileges. Nothing here knows of Snakemake."""
