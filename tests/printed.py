"""Numbers as a paper or a table prints them."""

import pytest


def printed(text: str):
    """Equal to what rounds to ``text``; at a tie, where last digits decide, either way.

    ``"20020"`` equals 20020.5 and its neighbours, as 20021 does.
    """
    digits = len(text.partition(".")[2])
    return pytest.approx(float(text), rel=0, abs=0.5 * 10.0**-digits * (1 + 1e-6))
