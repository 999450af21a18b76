"""Beside workflows/variants, whose Snakefile includes this: failures of each kind, for the pictures. See make.py."""


rule pictured:
    input:
        rules.all.input,
        expand("extra/{kind}.{sample}.txt", kind=["strict", "memory"], sample=SAMPLES),
        expand("extra/{kind}.txt", kind=["slow", "forgotten", "misspelt", "temporary"]),
        expand("extra/dice.{n}.txt", n=range(24)),


rule dice:
    """Many short jobs with different needs."""
    output:
        "extra/dice.{n}.txt",
    resources:
        mem_mb=120,
        runtime=5,
    shell:
        "sleep 0.$(( ({wildcards.n} * 7) % 9 )); head -c $(( {wildcards.n} * 1000000 )) /dev/zero | tail -c 1000000000 | wc -c > {output}"


rule strict:
    """Alike for all samples, with the reason in its log only."""
    input:
        "results/summary.tsv",
    output:
        "extra/strict.{sample}.txt",
    log:
        "logs/strict.{sample}.log",
    resources:
        mem_mb=100,
        runtime=5,
    shell:
        "(echo Reading the panel; echo ERROR: no panel of normals for {wildcards.sample} >&2; exit 3) > {log} 2>&1"


rule memory:
    """Too little memory at first: --forge-oom-retries gives it more."""
    output:
        "extra/memory.{sample}.txt",
    resources:
        mem_mb=60,
        runtime=5,
    shell:
        "head -c 90000000 /dev/zero | tail -c 90000000 | wc -c > {output}"


rule slow:
    """Without a runtime of its own: --forge-wall ends it."""
    output:
        "extra/slow.txt",
    resources:
        mem_mb=50,
    shell:
        "echo Waiting for the licence server; sleep 60; touch {output}"


rule forgotten:
    output:
        "extra/forgotten.txt",
    resources:
        mem_mb=50,
        runtime=5,
    shell:
        "date > extra/forgoten.txt"


rule misspelt:
    output:
        "extra/misspelt.txt",
    log:
        "logs/misspelt.log",
    resources:
        mem_mb=50,
        runtime=5,
    shell:
        "samtoolz --version > {output} 2> {log}"


rule temporary:
    output:
        "extra/temporary.txt",
    resources:
        mem_mb=200,
        disk_mb=20,
        runtime=5,
    shell:
        "head -c 40000000 /dev/urandom > $TMPDIR/sorted.tmp; wc -c $TMPDIR/sorted.tmp > {output}"
