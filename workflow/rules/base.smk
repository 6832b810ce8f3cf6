# The embedded models, from nothing. Their files are in git, so these rules run only if a file
# was deleted, or on `snakemake base --forceall`.
rule base:
    input:
        "models/emoji-unet/README.md",
        "models/emoji-dit/README.md",
        "models/emoji-clip/open_clip_model.safetensors",
        "models/world/vae/diffusion_pytorch_model.safetensors",
        "models/world/emoji-unet/unet/diffusion_pytorch_model.safetensors",
    localrule: True


rule base_autoencoder:
    output:
        "models/{base}/vae/diffusion_pytorch_model.safetensors",
    log:
        "results/logs/base/{base}-autoencoder.log",
    benchmark:
        "results/benchmarks/base/{base}-autoencoder.tsv"
    wildcard_constraints:
        base="emoji-unet|emoji-dit",
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        "fitspace base autoencoder models/{wildcards.base:q} > {log:q} 2>&1"


rule base_denoiser:
    input:
        ancient("models/{base}/vae/diffusion_pytorch_model.safetensors"),
    output:
        "models/{base}/{component}/diffusion_pytorch_model.safetensors",
    log:
        "results/logs/base/{base}-{component}.log",
    benchmark:
        "results/benchmarks/base/{base}-{component}.tsv"
    wildcard_constraints:
        component="unet|transformer",
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=180,
    shell:
        "fitspace base denoiser models/{wildcards.base:q} > {log:q} 2>&1"


rule base_judge:
    output:
        "models/emoji-clip/open_clip_model.safetensors",
    log:
        "results/logs/base/judge.log",
    benchmark:
        "results/benchmarks/base/judge.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        "fitspace base judge models/emoji-clip > {log:q} 2>&1"


rule base_card:
    input:
        denoiser,
        ancient("models/emoji-clip/open_clip_model.safetensors"),
    output:
        "models/{base}/README.md",
    log:
        "results/logs/base/{base}-card.log",
    benchmark:
        "results/benchmarks/base/{base}-card.tsv"
    wildcard_constraints:
        base="emoji-unet|emoji-dit",
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        "fitspace base card models/{wildcards.base:q} > {log:q} 2>&1"


# Of the second world. Its record is an output too: a part whose record is there is finished.
rule world_autoencoder:
    output:
        "models/world/vae/diffusion_pytorch_model.safetensors",
        "models/world/vae/training.json",
    log:
        "results/logs/base/world-autoencoder.log",
    benchmark:
        "results/benchmarks/base/world-autoencoder.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=480,
    shell:
        "python -m fitspace.recipes.world autoencoder --work results/base --out models/world"
        " > {log:q} 2>&1"


rule world_unet:
    input:
        ancient("models/world/vae/diffusion_pytorch_model.safetensors"),
    output:
        "models/world/emoji-unet/unet/diffusion_pytorch_model.safetensors",
        "models/world/emoji-unet/vae/diffusion_pytorch_model.safetensors",
        "models/world/emoji-unet/model_index.json",
    log:
        "results/logs/base/world-unet.log",
    benchmark:
        "results/benchmarks/base/world-unet.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=480,
    shell:
        "python -m fitspace.recipes.world unet --work results/base --out models/world"
        " > {log:q} 2>&1"
