include: "workflow/Snakefile"


# A file that is included does not decide the default target.
rule study:
    default_target: True
    input:
        rules.all.input,
    localrule: True
