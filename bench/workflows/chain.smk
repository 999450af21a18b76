# Chains of three jobs with temporary files between them: the scheduler decides how many of these exist at a time.
rule all:
    input:
        [f"out/{i}.txt" for i in range(int(config["jobs"]))],


rule first:
    input:
        "in.txt",
    output:
        temp("first/{i}.txt"),
    shell:
        "echo {wildcards.i} > {output}"


rule second:
    input:
        "first/{i}.txt",
    output:
        temp("second/{i}.txt"),
    shell:
        "cat {input} > {output}"


rule third:
    input:
        "second/{i}.txt",
    output:
        "out/{i}.txt",
    shell:
        "cat {input} > {output}"
