"""A training step against its floor: forward, loss and the backward that is needed.

    python benchmarks/step.py

`training.fit` runs for real; after each of its steps the floor's is done on a batch made
beforehand, so that both are measured in the same minute. What is over the floor is making
the batch, AdamW, the moving average and bookkeeping.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from embedded import embedded
from timing import Pairs

STEPS = 25
METHODS = {
    "adapter CA_out-FFN_in": ("adapter", {"input": "CA_out", "output": "FFN_in", "width": 8}),
    "lora": ("lora", {}),
    "difffit": ("difffit", {}),
    "bitfit": ("bitfit", {}),
    "full": ("full", {}),
}


def main() -> None:
    study, base, found = embedded()
    import numpy as np
    import torch

    from fitspace import bases, methods, training
    from fitspace.data.encoding import encode_captions, encode_images
    from fitspace.data.prepared import PreparedTask

    found = [e for e in found if e.split == "train"][:128]
    captions = ["", *dict.fromkeys(e.caption for e in found)]
    mean, std = encode_images(base, np.stack([e.image for e in found]))
    task = PreparedTask(
        mean=mean,
        std=std,
        captions=torch.tensor([captions.index(e.caption) for e in found]),
        groups=[[i] for i in range(len(found))],
        conditions={"embeddings": encode_captions(base, captions)},
        prompts=[1],
    )
    process = bases.load_process(base)
    scaling = bases.config(base, "vae")["scaling_factor"]
    settings = study.train.model_dump() | {"steps": STEPS}
    print("| method | step | floor | ratio |")
    print("|---|---|---|---|")
    for name, (method, chosen) in METHODS.items():
        model = bases.load_denoiser(base)
        attachment = methods.attach(model, method, chosen, 0)
        batch = training.make_batch(task, process, scaling, settings, 0, 0)
        parameters = list(attachment.trainable.values())
        ours, floor = [], []
        since = 0.0

        def between(
            step: int,
            model=model,
            batch=batch,
            parameters=parameters,
            ours=ours,
            floor=floor,
        ) -> None:
            nonlocal since
            ours.append(time.perf_counter() - since)
            start = time.perf_counter()
            predicted = model(batch.noisy, batch.t, batch.conditions["embeddings"]).sample
            loss = batch.losses(process, predicted).mean()
            torch.autograd.grad(loss, parameters)
            floor.append(time.perf_counter() - start)
            since = time.perf_counter()

        with tempfile.TemporaryDirectory() as folder:
            since = time.perf_counter()
            training.fit(
                model,
                attachment.trainable,
                task,
                process,
                scaling,
                settings,
                0,
                Path(folder) / "checkpoint.safetensors",
                on_step=between,
            )
        # The first steps warm caches up.
        print(f"| {name} | {Pairs(ours[5:], floor[5:])} |", flush=True)


if __name__ == "__main__":
    main()
