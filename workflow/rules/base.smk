# The embedded models, from nothing. Their files are in git, so these rules run only if a file
# was deleted, or on `snakemake base --forceall`.
rule base:
    input:
        "models/emoji-unet/README.md",
        "models/emoji-clip/README.md",
        "models/emoji-dit/README.md",
        "models/emoji-mmdit/README.md",
        "models/emoji-rewarder/README.md",
    localrule: True


# One autoencoder, a judge, and bases. A part's record is an output too: a part whose record is there
# is finished.
rule world_autoencoder:
    output:
        "models/vae/diffusion_pytorch_model.safetensors",
        "models/vae/training.json",
    log:
        "results/logs/base/world-autoencoder.log",
    benchmark:
        "results/benchmarks/base/world-autoencoder.tsv"
    priority: 1  # three bases wait for it
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=480,
    shell:
        "python -m fitspace.recipes.world autoencoder --work results/base --out models"
        " > {log:q} 2>&1"


rule world_judge:
    output:
        "models/emoji-clip/open_clip_model.safetensors",
        "models/emoji-clip/training.json",
    log:
        "results/logs/base/world-judge.log",
    benchmark:
        "results/benchmarks/base/world-judge.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=480,
    shell:
        "python -m fitspace.recipes.world judge --work results/base --out models" " > {log:q} 2>&1"


rule world_rewarder:
    output:
        "models/emoji-rewarder/open_clip_model.safetensors",
        "models/emoji-rewarder/training.json",
    log:
        "results/logs/base/world-rewarder.log",
    benchmark:
        "results/benchmarks/base/world-rewarder.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=480,
    shell:
        "python -m fitspace.recipes.world rewarder --work results/base --out models"
        " > {log:q} 2>&1"


rule world_unet:
    input:
        ancient("models/vae/diffusion_pytorch_model.safetensors"),
    output:
        "models/emoji-unet/unet/diffusion_pytorch_model.safetensors",
        "models/emoji-unet/vae/diffusion_pytorch_model.safetensors",
        "models/emoji-unet/model_index.json",
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
        "python -m fitspace.recipes.world unet --work results/base --out models > {log:q} 2>&1"


rule world_dit:
    input:
        ancient("models/vae/diffusion_pytorch_model.safetensors"),
    output:
        "models/emoji-dit/transformer/diffusion_pytorch_model.safetensors",
        "models/emoji-dit/vae/diffusion_pytorch_model.safetensors",
        "models/emoji-dit/model_index.json",
    log:
        "results/logs/base/world-dit.log",
    benchmark:
        "results/benchmarks/base/world-dit.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=480,
    shell:
        "python -m fitspace.recipes.world dit --work results/base --out models > {log:q} 2>&1"


rule world_mmdit:
    input:
        ancient("models/vae/diffusion_pytorch_model.safetensors"),
    output:
        "models/emoji-mmdit/transformer/diffusion_pytorch_model.safetensors",
        "models/emoji-mmdit/vae/diffusion_pytorch_model.safetensors",
        "models/emoji-mmdit/text_encoder/model.safetensors",
        "models/emoji-mmdit/text_encoder_2/model.safetensors",
        "models/emoji-mmdit/model_index.json",
    log:
        "results/logs/base/world-mmdit.log",
    benchmark:
        "results/benchmarks/base/world-mmdit.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=480,
    shell:
        "python -m fitspace.recipes.world mmdit --work results/base --out models > {log:q} 2>&1"


rule world_cards:
    input:
        ancient("models/vae/diffusion_pytorch_model.safetensors"),
        ancient("models/emoji-clip/open_clip_model.safetensors"),
        ancient("models/emoji-rewarder/open_clip_model.safetensors"),
        ancient("models/emoji-unet/unet/diffusion_pytorch_model.safetensors"),
        ancient("models/emoji-dit/transformer/diffusion_pytorch_model.safetensors"),
        ancient("models/emoji-mmdit/transformer/diffusion_pytorch_model.safetensors"),
    output:
        "models/vae/README.md",
        "models/emoji-clip/README.md",
        "models/emoji-rewarder/README.md",
        "models/emoji-unet/README.md",
        "models/emoji-dit/README.md",
        "models/emoji-mmdit/README.md",
    log:
        "results/logs/base/world-cards.log",
    benchmark:
        "results/benchmarks/base/world-cards.tsv"
    conda:
        "../envs/fitspace.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        "python -m fitspace.recipes.world cards --work results/base --out models > {log:q} 2>&1"
