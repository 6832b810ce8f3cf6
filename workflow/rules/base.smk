# The embedded models, from nothing. Their files are in git: these rules run only where one
# was deleted, or on `snakemake base --forceall`.
rule base:
    input:
        "models/emoji-unet/README.md",
        "models/emoji-clip/open_clip_model.safetensors",
    localrule: True


rule base_autoencoder:
    output:
        "models/emoji-unet/vae/diffusion_pytorch_model.safetensors",
    log:
        "results/logs/base/autoencoder.log",
    benchmark:
        "results/benchmarks/base/autoencoder.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        "fitspace base autoencoder models/emoji-unet > {log} 2>&1"


rule base_unet:
    input:
        ancient("models/emoji-unet/vae/diffusion_pytorch_model.safetensors"),
    output:
        "models/emoji-unet/unet/diffusion_pytorch_model.safetensors",
    log:
        "results/logs/base/unet.log",
    benchmark:
        "results/benchmarks/base/unet.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=180,
    shell:
        "fitspace base unet models/emoji-unet > {log} 2>&1"


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
        "fitspace base judge models/emoji-clip > {log} 2>&1"


rule base_card:
    input:
        ancient("models/emoji-unet/unet/diffusion_pytorch_model.safetensors"),
        ancient("models/emoji-clip/open_clip_model.safetensors"),
    output:
        "models/emoji-unet/README.md",
    log:
        "results/logs/base/card.log",
    benchmark:
        "results/benchmarks/base/card.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        "fitspace base card models/emoji-unet > {log} 2>&1"
