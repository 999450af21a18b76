# n trivial shell jobs; the large DAG uses them too, so that both overheads can be compared.
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
