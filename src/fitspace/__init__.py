"""Designed experiments on parameter-efficient fine-tuning of diffusion models."""

__version__ = "0.1.0"


def load_adapter(pipeline, path):
    """Attach an adapter trained by fitspace to a diffusers pipeline.

    Returns the attachment; its ``remove()`` restores the pipeline's base. Raises
    :class:`fitspace.core.errors.UserError` if the file is no adapter or fits another model.
    """
    from fitspace.methods import load_adapter as load

    return load(pipeline, path)
