rule report:
    input:
        own(sidecars(*ENDS)),
        study=STUDY,
    # update(): Snakemake would delete the old report before it is made anew. `fitspace report`
    # puts a new one in its place when it is whole.
    output:
        report(
            update("reports/{study}/runs.csv"),
            caption="../report/runs.rst",
            category="Tables",
        ),
        report(
            update("reports/{study}/anova.csv"),
            caption="../report/anova.rst",
            category="Tables",
        ),
        report(
            update("reports/{study}/effects.csv"),
            caption="../report/effects.rst",
            category="Tables",
        ),
        report(
            update("reports/{study}/report.html"),
            caption="../report/report.rst",
            category="Report",
        ),
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
