"""What a user would write instead: one run of a study as a plain script of diffusers.

    python benchmarks/naive.py '{"base": ..., "images": ..., "held_out": ..., "out": ..., ...}'

The usual parts in the usual way: images and captions read, augmented by nothing, encoded by the
autoencoder and by the text encoder in every step; the pipeline called with one prompt after
another; PNG files; torch-fidelity on two folders, open_clip beside it. Method, extractor and judge
are fitspace's own, so that both ways train and measure the same things. Prints one line of JSON:
seconds of each part, and the metrics. `benchmarks/study.py` calls it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def train(pipeline, folder: Path, method: str, settings: dict, train: dict, seed: int) -> None:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from PIL import Image

    from fitspace import methods

    class Images(torch.utils.data.Dataset):
        def __init__(self):
            lines = (folder / "metadata.jsonl").read_text().splitlines()
            self.rows = [json.loads(line) for line in lines]

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            image = Image.open(folder / self.rows[i]["file_name"]).convert("RGB")
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
            dropped = torch.rand(()) < train["caption_dropout"]
            return pixels, "" if dropped else self.rows[i]["text"]

    torch.manual_seed(seed)
    model, vae = pipeline.unet, pipeline.vae
    attachment = methods.attach(model, method, settings, seed)
    parameters = list(attachment.trainable.values())
    optimizer = torch.optim.AdamW(
        parameters, lr=train["lr"], weight_decay=train["weight_decay"], betas=(0.9, 0.999)
    )
    decay = train["ema"]
    ema = [] if decay is None else [p.detach().clone() for p in parameters]
    noising = DDPMScheduler.from_config(pipeline.scheduler.config)
    loader = torch.utils.data.DataLoader(
        Images(), batch_size=train["batch_size"], shuffle=True, drop_last=True
    )
    step = 0
    while step < train["steps"]:
        for pixels, captions in loader:
            with torch.no_grad():
                latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
                tokens = pipeline.tokenizer(
                    captions,
                    padding="max_length",
                    truncation=True,
                    max_length=pipeline.tokenizer.model_max_length,
                    return_tensors="pt",
                )
                condition = pipeline.text_encoder(tokens.input_ids)[0]
            noise = torch.randn_like(latents)
            t = torch.randint(noising.config.num_train_timesteps, (len(latents),))
            noisy = noising.add_noise(latents, noise, t)
            velocity = noising.config.prediction_type == "v_prediction"
            target = noising.get_velocity(latents, noise, t) if velocity else noise
            loss = F.mse_loss(model(noisy, t, condition).sample, target)
            optimizer.zero_grad()
            loss.backward()
            if train["grad_clip"] is not None:
                torch.nn.utils.clip_grad_norm_(parameters, train["grad_clip"])
            optimizer.step()
            for average, parameter in zip(ema, parameters, strict=False):  # none without
                average.lerp_(parameter.detach(), 1 - decay)
            step += 1
            if step == train["steps"]:
                break
    with torch.no_grad():
        for average, parameter in zip(ema, parameters, strict=False):
            parameter.copy_(average)


def sample(pipeline, prompts: list[str], sampling: dict, seed: int, out: Path) -> None:
    import torch
    from diffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    out.mkdir(parents=True)
    for i, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        image = pipeline(
            prompt,
            num_inference_steps=sampling["steps"],
            guidance_scale=sampling["guidance"],
            generator=generator,
        ).images[0]
        image.save(out / f"{i:05}.png")


def evaluate(made: Path, held_out: Path, prompts: list[str], judge: str) -> dict[str, float]:
    import open_clip
    import torch
    import torch_fidelity
    from PIL import Image

    from fitspace.metrics.effnet import EXTRACTOR

    found = torch_fidelity.calculate_metrics(
        input1=str(made),
        input2=str(held_out),
        feature_extractor=EXTRACTOR,
        fid=True,
        kid=True,
        kid_subset_size=min(len(list(made.glob("*.png"))), 50),
        prc=True,
        cuda=False,
        verbose=False,
        cache=False,
    )
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{judge}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{judge}")
    model.eval()

    def embedded(folder: Path) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat(
                [
                    model.encode_image(preprocess(Image.open(p).convert("RGB"))[None], True)
                    for p in sorted(folder.glob("*.png"))
                ]
            )

    with torch.no_grad():
        texts = torch.cat([model.encode_text(tokenizer([p]), normalize=True) for p in prompts])
    images, references = embedded(made), embedded(held_out)
    return {
        "fd_effnet": found["frechet_inception_distance"],
        "clip_t": (images * texts).sum(1).mean().item(),
        "clip_i": (images @ references.T).mean().item(),
    }


def main() -> None:
    job = json.loads(sys.argv[1])
    seconds, clock = {}, time.monotonic()

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = time.monotonic() - clock, time.monotonic()

    from fitspace.core.imports import import_torchvision

    import_torchvision()
    import diffusers
    import torch

    diffusers.utils.logging.set_verbosity_error()
    torch.set_flush_denormal(True)  # or it would be slower still
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        job["base"], local_files_only=True, use_safetensors=True
    )
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False).eval()
    lap("load")
    if job["method"] != "none":
        train(
            pipeline, Path(job["images"]), job["method"], job["settings"], job["train"], job["seed"]
        )
    lap("train")
    made = Path(job["out"]) / "samples"
    sample(pipeline, job["prompts"], job["sample"], job["seed"], made)
    lap("sample")
    metrics = evaluate(made, Path(job["held_out"]), job["prompts"], job["judge"])
    lap("evaluate")
    print(json.dumps({"seconds": seconds, "metrics": metrics}))


if __name__ == "__main__":
    main()
