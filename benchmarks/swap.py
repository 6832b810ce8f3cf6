"""One base, many small files: what an adapter weighs, and how long it takes to put another on.

    python benchmarks/swap.py

For each method on both embedded bases: the file's size, and the median milliseconds of
`fitspace.methods.load` and of taking it off again, in one process with one thread. Timings depend
on the machine: compare rows of one run.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from timing import seconds

from fitspace.core.imports import import_torchvision

ROOT = Path(__file__).parents[1]
TIMES = 15
METHODS = {
    "adapter": {"input": "SA_out", "output": "FFN_in", "width": 8},
    "adaptformer": {},
    "bitfit": {},
    "difffit": {},
    "lora": {"rank": 8},
    "loha": {},
    "lokr": {},
    "ia3": {},
    "oft": {"block_size": 16},
    "vpt": {},
    "full": {},
}


def main() -> None:
    import_torchvision()
    import torch

    from fitspace import bases, methods

    torch.set_num_threads(1)
    print("| base | method | parameters | file | load | remove |\n|---|---|---|---|---|---|")
    for name in ("emoji-unet", "emoji-dit"):
        base = bases.resolve(str(ROOT / "models" / name))
        model, family = bases.load_denoiser(base), bases.family(base).name
        for method, settings in METHODS.items():
            if methods.problems(method, methods.get(method).Settings(**settings), family):
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "adapter.safetensors"
                new = methods.attach(model, method, settings, seed=0)
                methods.save(new, path, {})
                count = sum(p.numel() for p in new.trainable.values())
                new.remove()
                size, taken, given_back = path.stat().st_size, [], []
                for _ in range(TIMES):
                    loaded: list = []
                    taken.append(seconds(lambda: loaded.append(methods.load(model, path))))  # noqa: B023
                    given_back.append(seconds(loaded[0].remove))
            load, remove = (1e3 * statistics.median(times) for times in (taken, given_back))
            print(
                f"| {name} | {method} | {count:,} | {size / 1e3:,.0f} kB | {load:.1f} ms | "
                f"{remove:.1f} ms |"
            )


if __name__ == "__main__":
    main()
