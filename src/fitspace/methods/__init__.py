"""Methods of parameter-efficient fine-tuning, each a module behind one protocol.

A method is a module of this package with

- ``Settings``: a :class:`~fitspace.methods.attachment.MethodSettings`, every field described;
- ``trains``: whether anything is trained;
- ``problems(settings, family)``: why it cannot be built on a family of denoisers (``unet``
  or ``dit``), as messages; empty when it can;
- ``attach(model, settings, seed)``: change a model in place, see
  :class:`~fitspace.methods.attachment.Attachment`;
- ``budget``, where it has a width: the setting in which the count of trainable parameters is
  affine, see :mod:`fitspace.plan.budget`;
- ``folds``, where several of it may be one batch on a GPU: hooks use the parameters of the module
  that they are given, and nothing is changed in place (``torch.vmap``).

A module put into this package is a method; CONTRIBUTING.md shows one.
Everything but ``attach`` works without torch, so that checking a study is cheap.
"""

from fitspace.methods.attaching import attach
from fitspace.methods.attachment import Attachment
from fitspace.methods.registry import METHODS, discovered, get, knob, problems, validated
from fitspace.methods.saving import load, load_adapter, read, save

__all__ = [
    "METHODS",
    "Attachment",
    "attach",
    "discovered",
    "get",
    "knob",
    "load",
    "load_adapter",
    "problems",
    "read",
    "save",
    "validated",
]
