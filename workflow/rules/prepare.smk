rule prepare:
    input:
        ancient(needs("prepare")),
    output:
        made("prepare"),
    log:
        "results/logs/prepare/{folder}.log",
    benchmark:
        "results/benchmarks/prepare/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=STAGES["prepare"].memory_mb,
        runtime=STAGES["prepare"].minutes,
    params:
        study=STUDY,
    shell:
        "fitspace prepare {params.study:q} {wildcards.folder:q} > {log:q} 2>&1"
