rule report:
    input:
        own(sidecars(*ENDS)),
        study=STUDY,
    # update(): Snakemake would delete the old report before it is made anew. `fitspace report`
    # puts a new one in its place when it is whole.
    output:
        update("reports/{study}/runs.csv"),
        update("reports/{study}/anova.csv"),
        update("reports/{study}/effects.csv"),
        update("reports/{study}/report.html"),
    log:
        "results/logs/report/{study}.log",
    benchmark:
        "results/benchmarks/report/{study}.tsv"
    localrule: True
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "fitspace report --cached {input.study:q} > {log:q} 2>&1"
