rule train:
    input:
        ancient(needs("train")),
    output:
        update("results/train/{folder}/adapter.safetensors"),
        update("results/train/{folder}/history.csv"),
        update("results/train/{folder}/train.json"),
    log:
        "results/logs/train/{folder}.log",
    benchmark:
        "results/benchmarks/train/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
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
