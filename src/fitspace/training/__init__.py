"""Fit a method's trainables on a prepared task, and draw images with them."""

from fitspace.training.batch import Batch, make_batch
from fitspace.training.loop import COMMON, fit, fit_members
from fitspace.training.member import Fit, Member, learning_rate, leaves, steps_done
from fitspace.training.reward import Reward, load_reward

__all__ = [
    "Batch",
    "COMMON",
    "Fit",
    "Member",
    "Reward",
    "fit",
    "fit_members",
    "learning_rate",
    "leaves",
    "load_reward",
    "make_batch",
    "steps_done",
]
