"""From the published alignments to sorted BAM files of our own, duplicates marked."""


rule extract_reads:
    """Take the reads back out of the published alignments, pairs next to each other."""
    input:
        verified=rules.verify_data.output,
        sam=lambda wildcards: DATA / config["samples"][wildcards.sample],
        wrapper=WRAPPER,
    output:
        temp("results/reads/{sample}.fastq.gz"),
    log:
        "logs/extract_reads/{sample}.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        samtools=SAMTOOLS,
    shell:
        "({params.samtools} sort -n -m 64M --no-PG -T {resources.tmpdir:q} -u {input.sam:q}"
        " | {params.samtools} fastq -N - | gzip -n > {output}) 2> {log}"


if TOOLS == "native":

    rule bwa_index:
        """Build the FM index that bwa searches."""
        input:
            "results/reference/ref.fa",
        output:
            temp(multiext("results/reference/bwa", ".amb", ".ann", ".bwt", ".pac", ".sa")),
        log:
            "logs/bwa_index.log",
        resources:
            mem_mb=300,
            runtime=5,
        params:
            prefix="results/reference/bwa",
        shell:
            "bwa index -p {params.prefix} {input} 2> {log}"

    rule map_reads:
        """Align the pairs with bwa mem. Its @PG line, which holds the command line, is dropped."""
        input:
            reads="results/reads/{sample}.fastq.gz",
            index=rules.bwa_index.output,
        output:
            temp("results/mapped/{sample}.bam"),
        log:
            "logs/map_reads/{sample}.log",
        benchmark:
            "benchmarks/map_reads/{sample}.tsv"
        threads: 2
        resources:
            mem_mb=400,
            runtime=5,
        params:
            prefix=rules.bwa_index.params.prefix,
            group=r"@RG\tID:{sample}\tSM:{sample}\tPL:ILLUMINA",
        shell:
            # -K fixes the batch size, so that the result does not depend on the number of threads.
            "(bwa mem -t {threads} -K 10000000 -p -R {params.group:q} {params.prefix} {input.reads}"
            " | sed '/^@PG/d'"
            " | samtools view --no-PG -b -o {output} -) 2> {log}"

else:

    rule map_reads:
        """Align the pairs with minimap2's short-read preset, through mappy."""
        input:
            reads="results/reads/{sample}.fastq.gz",
            reference="results/reference/ref.fa",
        output:
            temp("results/mapped/{sample}.bam"),
        log:
            "logs/map_reads/{sample}.log",
        benchmark:
            "benchmarks/map_reads/{sample}.tsv"
        resources:
            mem_mb=400,
            runtime=5,
        params:
            max_insert=config["max_insert"],
        script:
            "../scripts/map_minimap2.py"


rule fix_mates:
    """Fill in each read's fields about its mate, for duplicate marking."""
    input:
        bam="results/mapped/{sample}.bam",
        wrapper=WRAPPER,
    output:
        temp("results/fixed/{sample}.bam"),
    log:
        "logs/fix_mates/{sample}.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        samtools=SAMTOOLS,
    shell:
        "{params.samtools} fixmate -m --no-PG {input.bam} {output} 2> {log}"


rule sort_reads:
    """Sort by position."""
    input:
        bam="results/fixed/{sample}.bam",
        wrapper=WRAPPER,
    output:
        temp("results/sorted/{sample}.bam"),
    log:
        "logs/sort_reads/{sample}.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        samtools=SAMTOOLS,
    shell:
        "{params.samtools} sort -m 64M --no-PG -T {resources.tmpdir:q} -o {output} {input.bam} 2> {log}"


rule mark_duplicates:
    """Mark the copies that the polymerase made of one fragment."""
    input:
        bam="results/sorted/{sample}.bam",
        wrapper=WRAPPER,
    output:
        "results/bam/{sample}.bam",
    log:
        "logs/mark_duplicates/{sample}.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        samtools=SAMTOOLS,
    shell:
        "{params.samtools} markdup -s --no-PG -T {resources.tmpdir:q}/{wildcards.sample}"
        " {input.bam} {output} 2> {log}"


rule index_reads:
    """Index by position."""
    input:
        bam="results/bam/{sample}.bam",
        wrapper=WRAPPER,
    output:
        "results/bam/{sample}.bam.bai",
    log:
        "logs/index_reads/{sample}.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        samtools=SAMTOOLS,
    shell:
        "{params.samtools} index {input.bam} {output} 2> {log}"
