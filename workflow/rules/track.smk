# MLflow is a view of results/. The driver updates it once, after the last run, as the only
# writer. `all` asks for it only if a run is made, see tracked().
rule track:
    input:
        own(sidecars(*ENDS)),
        study=STUDY,
    output:
        touch("results/.cache/tracked/{study}"),
    log:
        "results/logs/track/{study}.log",
    benchmark:
        "results/benchmarks/track/{study}.tsv"
    localrule: True
    conda:
        "../envs/fitspace.yaml"
    # A server that is down must not make a finished study a failed one.
    shell:
        "fitspace track {input.study:q} > {log:q} 2>&1"
        " || echo not in MLflow, see {log:q}, later: fitspace track {input.study:q} >&2"
