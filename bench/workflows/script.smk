# n trivial jobs with a Python script: every executor starts one Python for each.
rule all:
    input:
        [f"out/{i}.txt" for i in range(int(config["jobs"]))],


rule one:
    input:
        "in.txt",
    output:
        "out/{i}.txt",
    script:
        "job.py"
