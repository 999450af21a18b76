# n jobs that only sleep, so that the memory measured is the executor's and not the jobs'.
rule all:
    input:
        [f"out/{i}.txt" for i in range(int(config["jobs"]))],


rule one:
    output:
        "out/{i}.txt",
    shell:
        "sleep {config[seconds]}; echo {wildcards.i} > {output}"
