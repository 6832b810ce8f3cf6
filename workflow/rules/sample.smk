rule sample:
    input:
        ancient(needs("sample")),
    output:
        made("sample"),
    log:
        "results/logs/sample/{folder}.log",
    benchmark:
        "results/benchmarks/sample/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=STAGES["sample"].memory_mb,
        runtime=STAGES["sample"].minutes,
        together=1,
    params:
        study=STUDY,
    shell:
        "fitspace sample --together {resources.together} {params.study:q} {wildcards.folder:q}"
        " > {log:q} 2>&1"
