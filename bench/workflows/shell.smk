# n trivial shell jobs; also the large DAG, so that the overheads of both compare like with like.
rule all:
    input:
        [f"out/{i}.txt" for i in range(int(config["jobs"]))],


rule one:
    input:
        "in.txt",
    output:
        "out/{i}.txt",
    shell:
        "echo {wildcards.i} > {output}"
