# One job that reads many files, each of them once, which is when an audit has most to do.
rule all:
    input:
        "out/0.txt",


rule reads:
    input:
        "in.txt",
    output:
        "out/0.txt",
    shell:
        "find files -type f | xargs cat | cksum > {output}"
