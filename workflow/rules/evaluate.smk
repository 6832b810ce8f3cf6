rule evaluate:
    input:
        ancient(needs("evaluate", "sample", "reference")),
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
    params:
        study=STUDY,
    shell:
        "fitspace evaluate {params.study:q} {wildcards.folder:q} > {log:q} 2>&1"
