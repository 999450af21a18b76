# One job that reads many files once each: the most work for an audit.
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
