rule prepare:
    output:
        "results/tasks/{folder}/latents.safetensors",
        "results/tasks/{folder}/text.safetensors",
        "results/tasks/{folder}/images.safetensors",
        "results/tasks/{folder}/manifest.json",
        "results/tasks/{folder}/prepare.json",
    log:
        "results/logs/prepare/{folder}.log",
    benchmark:
        "results/benchmarks/prepare/{folder}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        "fitspace prepare {STUDY:q} {wildcards.folder:q} > {log:q} 2>&1"


rule reference:
    input:
        ancient(needs("reference", "prepare")),
    output:
        "results/reference/{folder}/features.safetensors",
        "results/reference/{folder}/reference.json",
    log:
        "results/logs/reference/{folder}.log",
    benchmark:
        "results/benchmarks/reference/{folder}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        "fitspace reference {STUDY:q} {wildcards.folder:q} > {log:q} 2>&1"
