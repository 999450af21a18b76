# n trivial jobs with a run block: the local executor starts a whole Snakemake for each.
rule all:
    input:
        [f"out/{i}.txt" for i in range(int(config["jobs"]))],


rule one:
    input:
        "in.txt",
    output:
        "out/{i}.txt",
    run:
        with open(output[0], "w") as stream:
            stream.write(f"{wildcards.i}\n")
