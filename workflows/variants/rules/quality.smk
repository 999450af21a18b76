"""The quality of each sample's reads."""


rule measure:
    """Flags, statistics and the depth at every base, duplicates left out of the depth."""
    input:
        bam="results/bam/{sample}.bam",
        index="results/bam/{sample}.bam.bai",
        wrapper=WRAPPER,
    output:
        flagstat="results/qc/{sample}.flagstat.tsv",
        stats="results/qc/{sample}.stats.txt",
        depth="results/qc/{sample}.depth.tsv",
    log:
        "logs/measure/{sample}.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        samtools=SAMTOOLS,
    shell:
        """
        exec 2> {log}
        {params.samtools} flagstat -O tsv {input.bam} > {output.flagstat}
        {params.samtools} stats {input.bam} > {output.stats}
        {params.samtools} depth -a {input.bam} > {output.depth}
        """


rule sample_qc:
    """Condense the three reports to one row."""
    input:
        flagstat="results/qc/{sample}.flagstat.tsv",
        stats="results/qc/{sample}.stats.txt",
        depth="results/qc/{sample}.depth.tsv",
    output:
        "results/qc/{sample}.qc.tsv",
    log:
        "logs/sample_qc/{sample}.log",
    resources:
        mem_mb=300,
        runtime=5,
    script:
        "../scripts/sample_qc.py"


rule gather_qc:
    """One table of all samples."""
    input:
        expand("results/qc/{sample}.qc.tsv", sample=SAMPLES),
    output:
        "results/qc.tsv",
    log:
        "logs/gather_qc.log",
    resources:
        mem_mb=300,
        runtime=5,
    run:
        lines = [line for path in input for line in Path(path).read_text().splitlines()]
        rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["sample"] != "sample"]
        with open(output[0], "w", newline="") as table, open(log[0], "w") as report:
            writer = csv.DictWriter(table, rows[0].keys(), delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            print(f"{len(rows)} samples", file=report)
