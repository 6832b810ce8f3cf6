rule sample:
    input:
        ancient(needs("sample")),
    output:
        update("results/sample/{folder}/samples.safetensors"),
        update("results/sample/{folder}/sheet.png"),
        update("results/sample/{folder}/sample.json"),
    log:
        "results/logs/sample/{folder}.log",
    benchmark:
        "results/benchmarks/sample/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
        together=1,
    params:
        study=STUDY,
    shell:
        "fitspace sample --together {resources.together} {params.study:q} {wildcards.folder:q}"
        " > {log:q} 2>&1"
