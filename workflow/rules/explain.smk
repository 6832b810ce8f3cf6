# Only a study with the key `explain` asks for any.
rule explain:
    input:
        ancient(needs("explain")),
    output:
        made("explain"),
    log:
        "results/logs/explain/{folder}.log",
    benchmark:
        "results/benchmarks/explain/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=STAGES["explain"].memory_mb,
        runtime=STAGES["explain"].minutes,
        together=1,
    params:
        study=STUDY,
    shell:
        "fitspace explain --together {resources.together} {params.study:q} {wildcards.folder:q}"
        " > {log:q} 2>&1"
