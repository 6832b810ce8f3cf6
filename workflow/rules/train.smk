rule train:
    input:
        ancient(needs("train")),
    output:
        made("train"),
    log:
        "results/logs/train/{folder}.log",
    benchmark:
        "results/benchmarks/train/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=STAGES["train"].memory_mb,
        runtime=STAGES["train"].minutes,
        together=1,
        gradient_checkpointing=0,
        compile=0,
    params:
        study=STUDY,
    shell:
        "fitspace train --together {resources.together}"
        " --gradient-checkpointing {resources.gradient_checkpointing}"
        " --compile {resources.compile}"
        " {params.study:q} {wildcards.folder:q}"
        " > {log:q} 2>&1"
