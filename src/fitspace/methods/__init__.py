"""Methods of parameter-efficient fine-tuning, each a module behind one protocol.

A method is a module of this package with

- ``Settings``: a :class:`~fitspace.methods.attachment.MethodSettings`, every field described;
- ``trains``: whether anything is trained;
- ``problems(settings, family)``: messages that say why the method cannot be built on a family of
  denoisers (``unet`` or ``dit``); empty if it can;
- ``attach(model, settings, seed)``: change a model in place, see
  :class:`~fitspace.methods.attachment.Attachment`;
- ``budget``, for a method with a width: the setting in which the number of trainable parameters
  is affine, see :mod:`fitspace.plan.budget`;
- ``AT_REST``, for a method that can be sampled at another strength, see
  :mod:`fitspace.methods.strength`; with it ``not_linear(settings)``, if some settings (a dict)
  have no strength: which, in words, or None;
- ``needs_whole(settings, control)``, for one under which the base's frozen weights cannot be stored
  in fewer bits with some or all settings (a dict): why, in words that follow its name, or None;
- ``sizes(settings)``, for one without such a width: the settings by which memory is taken;
- ``folds``, for a method of which several runs can form one batch on a GPU (``torch.vmap``): hooks
  use the parameters of the module that they are given, and nothing is changed in place.

Every module in this package is a method; CONTRIBUTING.md shows how to write one. Everything
except ``attach`` works without torch, so that checking a study is fast.
"""

from fitspace.methods.attaching import attach
from fitspace.methods.attachment import Attachment
from fitspace.methods.blocks import unknown_blocks
from fitspace.methods.registry import (
    METHODS,
    discovered,
    get,
    knob,
    needs_whole,
    problems,
    validated,
)
from fitspace.methods.saving import load, load_adapter, read, save
from fitspace.methods.strength import problems_of_strength

__all__ = [
    "METHODS",
    "Attachment",
    "attach",
    "discovered",
    "get",
    "knob",
    "load",
    "load_adapter",
    "needs_whole",
    "problems",
    "problems_of_strength",
    "read",
    "save",
    "unknown_blocks",
    "validated",
]
