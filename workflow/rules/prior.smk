# Class images for prior preservation; only DreamBooth tasks ask for any.
rule prior:
    output:
        made("prior"),
    log:
        "results/logs/prior/{folder}.log",
    benchmark:
        "results/benchmarks/prior/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=STAGES["prior"].memory_mb,
        runtime=STAGES["prior"].minutes,
    params:
        study=STUDY,
    shell:
        "fitspace prior {params.study:q} {wildcards.folder:q} > {log:q} 2>&1"
