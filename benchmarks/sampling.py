"""Sampling against calling the pipeline: the same images from the same noise, and the times.

    python benchmarks/sampling.py

Against one prompt a call, as scripts do, and against all prompts in one call.
"""

from __future__ import annotations

from embedded import embedded
from timing import pairs

from fitspace.core import rng

PROMPTS = 16


def main() -> None:
    study, base, found = embedded()
    import diffusers
    import numpy as np

    from fitspace import bases
    from fitspace.data.encoding import encode_captions
    from fitspace.training import sampling

    prompts = [e.caption for e in found if e.split == "test"][:PROMPTS]
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        base, local_files_only=True, use_safetensors=True
    )
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config
    )
    pipeline.set_progress_bar_config(disable=True)
    model, vae = bases.load_denoiser(base), bases.load_vae(base)
    told = {"embeddings": encode_captions(base, ["", *prompts])}
    shape = (model.config.in_channels, model.config.sample_size, model.config.sample_size)
    noise = rng.initial_noise(0, len(prompts), shape)
    steps, guidance = study.sample.steps, study.sample.guidance

    def ours() -> np.ndarray:
        return sampling.generate(
            model, vae, bases.load_process(base), bases.picked(told, slice(1, None)),
            bases.picked(told, [0]), noise, steps, guidance,
        )  # fmt: skip

    def called(rows: slice) -> np.ndarray:
        drawn = pipeline(
            prompts[rows],
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=noise[rows].clone(),
            output_type="np",
        ).images
        return (drawn * 255).round().astype(np.uint8)

    def one_by_one() -> np.ndarray:
        return np.concatenate([called(slice(i, i + 1)) for i in range(len(prompts))])

    def together() -> np.ndarray:
        return called(slice(None))

    mine = ours().astype(int)
    print("| against | pipeline | fitspace | ratio | largest difference in grey levels |")
    print("|---|---|---|---|---|")
    for name, theirs, count in (("one prompt a call", one_by_one, 3), ("one call", together, 3)):
        apart = int(np.abs(theirs().astype(int) - mine).max())
        print(f"| {name} | {pairs(theirs, ours, count)} | {apart} |", flush=True)


if __name__ == "__main__":
    main()
