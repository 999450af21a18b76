# One job that keeps one core and the disk busy: compress and sort the same file, one after the other.
# Single-threaded on purpose: a limit of one CPU for `threads: 1` must not change what the job may do.
rule all:
    input:
        "out/0.txt",
        "out/data.gz",


rule heavy:
    input:
        "data.txt",
    output:
        sorted="out/0.txt",
        compressed="out/data.gz",
    shell:
        "gzip -nc {input} > {output.compressed}; "
        "LC_ALL=C sort --parallel=1 -S 32M {input} > {output.sorted}"
