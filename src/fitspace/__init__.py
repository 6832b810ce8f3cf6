"""Designed experiments on parameter-efficient fine-tuning of diffusion models."""

__version__ = "0.1.0"


def load_adapter(pipeline, path, instead_of=None):
    """Attach an adapter trained by fitspace to a diffusers pipeline.

    Returns the attachment; its ``remove()`` restores the pipeline's base. Another file takes its
    place with ``instead_of``; with the same method and settings only values are copied. Raises
    :class:`fitspace.core.errors.UserError` if the file is no adapter or fits another model.

    >>> from diffusers import DiffusionPipeline
    >>> from fitspace import bases, load_adapter, methods
    >>> pipeline = DiffusionPipeline.from_pretrained(bases.resolve("models/emoji-unet"))
    >>> new = methods.attach(pipeline.unet, "lora", {"rank": 2}, seed=0)  # a study trains it
    >>> methods.save(new, "adapter.safetensors", metadata={})
    >>> new.remove()
    >>> adapter = load_adapter(pipeline, "adapter.safetensors")
    >>> adapter.method, sum(p.numel() for p in adapter.trainable.values())
    ('lora', 24832)
    >>> image = pipeline("red heart", 32, 32, num_inference_steps=2).images[0]
    >>> adapter = load_adapter(pipeline, "adapter.safetensors", instead_of=adapter)
    >>> adapter.remove()
    """
    from fitspace.methods import load_adapter as load

    return load(pipeline, path, instead_of)
