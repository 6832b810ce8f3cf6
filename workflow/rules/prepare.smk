rule prepare:
    input:
        ancient(needs("prepare")),
    output:
        update("results/tasks/{folder}/latents.safetensors"),
        update("results/tasks/{folder}/text.safetensors"),
        update("results/tasks/{folder}/images.safetensors"),
        update("results/tasks/{folder}/manifest.json"),
        update("results/tasks/{folder}/prepare.json"),
    log:
        "results/logs/prepare/{folder}.log",
    benchmark:
        "results/benchmarks/prepare/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        study=STUDY,
    shell:
        "fitspace prepare {params.study:q} {wildcards.folder:q} > {log:q} 2>&1"


rule reference:
    input:
        ancient(needs("reference")),
    output:
        update("results/reference/{folder}/features.safetensors"),
        update("results/reference/{folder}/reference.json"),
    log:
        "results/logs/reference/{folder}.log",
    benchmark:
        "results/benchmarks/reference/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        study=STUDY,
    shell:
        "fitspace reference {params.study:q} {wildcards.folder:q} > {log:q} 2>&1"
