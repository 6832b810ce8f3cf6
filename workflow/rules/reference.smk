rule reference:
    input:
        ancient(needs("reference")),
    output:
        made("reference"),
    log:
        "results/logs/reference/{folder}.log",
    benchmark:
        "results/benchmarks/reference/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=STAGES["reference"].memory_mb,
        runtime=STAGES["reference"].minutes,
    params:
        study=STUDY,
    shell:
        "fitspace reference {params.study:q} {wildcards.folder:q} > {log:q} 2>&1"
