# Chains of three jobs with temporary files between them: how many of these lie around at a time is up to the scheduler.
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
