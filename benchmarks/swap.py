"""One base, many small files: what an adapter weighs, and how long it takes to put another on.

    python benchmarks/swap.py

For each method on both embedded bases: the file's size, and the median CPU milliseconds of
`fitspace.methods.load`, of loading another file of the same method in its place (`instead_of`), and
of taking it off again, in one process with one thread. The files' values are drawn at random: times
and sizes do not depend on them. Timings depend on the machine: compare rows of one run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
    print("| base | method | parameters | file | load | another | remove |")
    print("|---|---|---|---|---|---|---|")
    for name in ("emoji-unet", "emoji-dit"):
        base = bases.resolve(str(ROOT / "models" / name))
        model, family = bases.load_denoiser(base), bases.family(base).name
        for method, settings in METHODS.items():
            if methods.problems(method, methods.get(method).Settings(**settings), family):
                continue
            with tempfile.TemporaryDirectory() as folder:
                paths = [Path(folder) / f"{seed}.safetensors" for seed in (0, 1)]
                for seed, path in enumerate(paths):
                    new = methods.attach(model, method, settings, seed)
                    generator = torch.Generator().manual_seed(seed)
                    with torch.no_grad():
                        for value in new.trainable.values():
                            value += 0.01 * torch.randn(value.shape, generator=generator)
                    methods.save(new, path, {})
                    count = sum(value.numel() for value in new.trainable.values())
                    new.remove()
                size = paths[0].stat().st_size
                times = [_swapped(methods, model, paths) for _ in range(TIMES)]
            load, another, remove = (
                f"{1e3 * statistics.median(taken):.1f} ms" for taken in zip(*times, strict=True)
            )
            print(
                f"| {name} | {method} | {count:,} | {size / 1e3:,.0f} kB | {load} | {another} | "
                f"{remove} |"
            )


def _swapped(methods, model, paths) -> tuple[float, float, float]:
    """Seconds of putting the first file on, the second in its place, and of taking it off."""
    on: list = []
    load = _seconds(lambda: on.append(methods.load(model, paths[0])))
    another = _seconds(lambda: on.append(methods.load(model, paths[1], instead_of=on[0])))
    return load, another, _seconds(on[1].remove)


def _seconds(work: Callable[[], object]) -> float:
    """CPU seconds: other work on the machine does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
