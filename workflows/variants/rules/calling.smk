"""The regions (a checkpoint), the calls of each region, and the results from all of them."""


def region_files(wildcards) -> list[str]:
    """The calls of every region that the checkpoint found, in order of their position."""
    folder = checkpoints.find_regions.get().output[0]
    regions = sorted(glob_wildcards(f"{folder}/{{region}}.bed").region)
    return expand("results/calls/{region}.bcf", region=regions)


def region_folder(wildcards) -> str:
    """The checkpoint's folder, once it is there."""
    return checkpoints.find_regions.get().output[0]


checkpoint find_regions:
    """Find regions where the samples are covered well enough; the data decide how many."""
    input:
        expand("results/qc/{sample}.depth.tsv", sample=SAMPLES),
    output:
        directory("results/regions"),
    log:
        "logs/find_regions.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        **config["regions"],
    script:
        "../scripts/find_regions.py"


rule call_region:
    """Call the three samples together in one region; normalise, and mark doubtful calls."""
    input:
        regions=region_folder,
        reference="results/reference/ref.fa",
        index="results/reference/ref.fa.fai",
        bams=expand("results/bam/{sample}.bam", sample=SAMPLES),
        bais=expand("results/bam/{sample}.bam.bai", sample=SAMPLES),
        wrapper=WRAPPER,
    output:
        temp("results/calls/{region}.bcf"),
    log:
        "logs/call_region/{region}.log",
    benchmark:
        "benchmarks/call_region/{region}.tsv"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        **config["calling"],
        bcftools=BCFTOOLS,
    shell:
        "({params.bcftools} mpileup --no-version -Ou -f {input.reference}"
        " -R {input.regions}/{wildcards.region}.bed"
        " -q {params.min_mapping_quality} -Q {params.min_base_quality} -a FORMAT/AD,FORMAT/DP {input.bams}"
        " | {params.bcftools} call --no-version -mv -a GQ -Ou -"
        " | {params.bcftools} norm --no-version -f {input.reference} -Ou -"
        " | {params.bcftools} filter --no-version -s LowQual -e 'QUAL<{params.min_quality}' -Ob -o {output} -"
        ") 2> {log}"


rule join_calls:
    """Put the regions together: one compressed VCF and its index."""
    input:
        calls=region_files,
        wrapper=WRAPPER,
    output:
        vcf=ensure("results/joint.vcf.gz", non_empty=True),
        index="results/joint.vcf.gz.tbi",
    log:
        "logs/join_calls.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        bcftools=BCFTOOLS,
    shell:
        "({params.bcftools} concat --no-version -Oz -o {output.vcf} {input.calls}"
        " && {params.bcftools} index -t -f {output.vcf}) 2> {log}"


rule list_variants:
    """The variants and genotypes as a plain table."""
    input:
        "results/joint.vcf.gz",
    output:
        "results/variants.tsv",
    log:
        "logs/list_variants.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        samples=SAMPLES,
    script:
        "../scripts/list_variants.py"


rule summarise:
    """Variants, transitions to transversions, depth and genotypes of each sample."""
    input:
        variants="results/variants.tsv",
        qc="results/qc.tsv",
    output:
        "results/summary.tsv",
    log:
        "logs/summarise.log",
    resources:
        mem_mb=300,
        runtime=5,
    params:
        samples=SAMPLES,
    script:
        "../scripts/summarise.py"


rule draw_coverage:
    """Draw the depth of each sample along the reference, the regions called and the variants found."""
    input:
        depths=expand("results/qc/{sample}.depth.tsv", sample=SAMPLES),
        variants="results/variants.tsv",
        regions=region_folder,
    output:
        png="results/coverage.png",
        svg="results/coverage.svg",
    log:
        "logs/draw_coverage.log",
    resources:
        mem_mb=600,
        runtime=5,
    params:
        samples=SAMPLES,
        reference_name=config["reference_name"],
    script:
        "../scripts/draw_coverage.py"
