"""Jobs that attack the host. The config has the places of the neighbours and the database; no job may reach them."""

NEIGHBOURS = config["neighbours"]
DATABASE = config["database"]


localrules:
    all,


rule all:
    input:
        expand("{attack}.txt", attack=["fork_bomb", "memory_hog", "wipe", "full_disk", "kill_all", "socket"]),


rule fork_bomb:
    output:
        "fork_bomb.txt",
    resources:
        mem_mb=500,
    shell:
        "python3 -c 'import os; [os.fork() for _ in iter(int, 1)]' && echo done > {output}"


rule memory_hog:
    output:
        "memory_hog.txt",
    resources:
        mem_mb=300,
    shell:
        "head -c 4G /dev/zero | tail > {output}"


rule wipe:
    output:
        "wipe.txt",
    resources:
        mem_mb=200,
    shell:
        "rm -rf {NEIGHBOURS} {DATABASE}/* && test -d {DATABASE}/data && echo gone > {output}"


rule full_disk:
    output:
        "full_disk.txt",
    resources:
        mem_mb=300,
        disk_mb=200,
    shell:
        "dd if=/dev/zero of={output} bs=1M"


rule kill_all:
    output:
        "kill_all.txt",
    resources:
        mem_mb=200,
    shell:
        "kill -9 -1; echo done > {output}"


rule socket:
    output:
        "socket.txt",
    resources:
        mem_mb=200,
    shell:
        "psql -h {DATABASE}/run -p {config[port]} -U forge -d postgres -c 'drop table ticks' > {output}"
