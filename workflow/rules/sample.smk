rule sample:
    input:
        ancient(needs("sample", "prepare", "train")),
    output:
        "results/sample/{folder}/samples.safetensors",
        "results/sample/{folder}/sheet.png",
        "results/sample/{folder}/sample.json",
    log:
        "results/logs/sample/{folder}.log",
    benchmark:
        "results/benchmarks/sample/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        study=STUDY,
    shell:
        "fitspace sample {params.study:q} {wildcards.folder:q} > {log:q} 2>&1"
