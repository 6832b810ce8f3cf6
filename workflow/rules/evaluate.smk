rule evaluate:
    input:
        ancient(needs("evaluate")),
    output:
        made("evaluate"),
    log:
        "results/logs/evaluate/{folder}.log",
    benchmark:
        "results/benchmarks/evaluate/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=STAGES["evaluate"].memory_mb,
        runtime=STAGES["evaluate"].minutes,
        together=1,
    params:
        study=STUDY,
    shell:
        "fitspace evaluate --together {resources.together} {params.study:q} {wildcards.folder:q}"
        " > {log:q} 2>&1"
