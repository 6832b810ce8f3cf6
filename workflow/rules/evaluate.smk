rule evaluate:
    input:
        ancient(needs("evaluate")),
    output:
        update("results/evaluate/{folder}/metrics.json"),
        update("results/evaluate/{folder}/evaluate.json"),
    log:
        "results/logs/evaluate/{folder}.log",
    benchmark:
        "results/benchmarks/evaluate/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=30,
        together=1,
    params:
        study=STUDY,
    shell:
        "fitspace evaluate --together {resources.together} {params.study:q} {wildcards.folder:q}"
        " > {log:q} 2>&1"
