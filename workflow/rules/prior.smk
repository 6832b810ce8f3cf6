# Class images for prior preservation; only DreamBooth tasks ask for any.
rule prior:
    output:
        update("results/prior/{folder}/images.safetensors"),
        update("results/prior/{folder}/sheet.png"),
        update("results/prior/{folder}/prior.json"),
    log:
        "results/logs/prior/{folder}.log",
    benchmark:
        "results/benchmarks/prior/{folder}.tsv"
    conda:
        "../envs/fitspace.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        study=STUDY,
    shell:
        "fitspace prior {params.study:q} {wildcards.folder:q} > {log:q} 2>&1"
