"""What benchmarks of the embedded models start from."""

from __future__ import annotations

from pathlib import Path


def embedded():
    """The default study, its base's folder and its first task's examples; one thread, as a job."""
    from fitspace.core.imports import import_torchvision

    import_torchvision()
    import torch

    from fitspace import bases
    from fitspace.data import load_examples
    from fitspace.plan import load_study

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    study = load_study(Path("params/emoji.yaml"))
    base = bases.resolve(study.base)
    return study, base, load_examples(study.tasks[0], bases.image_size(base))[0]
