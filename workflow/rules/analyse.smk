rule report:
    input:
        sidecars("evaluate"),
        study=STUDY,
    output:
        "reports/{study}/runs.csv",
        "reports/{study}/anova.csv",
        "reports/{study}/effects.csv",
        "reports/{study}/report.html",
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
