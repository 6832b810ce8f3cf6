"""People compare samples in blinded pairs: what is shown, on which page, and what they answered."""

from fitspace.rating.answers import Answers, read
from fitspace.rating.pairs import FOLDER, KEY, Pair, choose, write

__all__ = ["Answers", "FOLDER", "KEY", "Pair", "choose", "read", "write"]
