"""How many ranks a table of means tells apart, given how much runs of one level spread."""

from __future__ import annotations

import math

import pandas as pd

from fitspace.core.errors import UserError
from fitspace.stats.multiplicity import tukey_critical


def ranks(
    means: pd.Series,
    sigma: float,
    df: float,
    *,
    runs: int = 1,
    adjust: str = "tukey",
    alpha: float = 0.05,
    lower: bool = False,
) -> pd.DataFrame:
    """Levels from the best on; a rank's levels are not shown to differ from the first of them.

    >>> scores = pd.Series({"lora": 0.74, "oft": 0.71, "ia3": 0.65, "norms": 0.34})
    >>> found = ranks(scores, sigma=0.026, df=6)
    >>> found[["level", "mean", "rank"]]
       level  mean  rank
    0   lora  0.74     1
    1    oft  0.71     1
    2    ia3  0.65     1
    3  norms  0.34     2
    >>> found["least"].unique().round(4)
    array([0.1273])

    Columns: level, mean, rank, least (the least difference that separates two levels). The last
    rank is the largest number of levels each of which differs from each other. The means may come
    from a table without replicates, and ``sigma`` from elsewhere.

    Parameters
    ----------
    means : level -> its mean, each of as many ``runs``.
    sigma, df : standard deviation of runs of one level, and the degrees of freedom it rests on.
    adjust : "tukey" for all pairs together, or "none".
    lower : whether the best mean is the smallest.

    Raises
    ------
    UserError : fewer than two means, one that is not finite, or numbers out of range.

    References
    ----------
    Tukey's honestly significant difference; for ``none``, Fisher's least significant difference.
    """
    problems = [
        f"{name}: {value}; allowed: {allowed}"
        for name, value, allowed, fine in (
            ("means", len(means), "at least 2", len(means) > 1),
            ("means", means.to_list(), "finite numbers", means.map(math.isfinite).all()),
            ("sigma", sigma, "a number above 0", math.isfinite(sigma) and sigma > 0),
            ("df", df, "a number above 0", df > 0),
            ("runs", runs, "at least 1", runs >= 1),
            ("alpha", alpha, "between 0 and 1", 0 < alpha < 1),
            ("adjust", repr(adjust), "'tukey', 'none'", adjust in ("tukey", "none")),
        )
        if not fine
    ]
    if problems:
        raise UserError(problems)
    compared = len(means) if adjust == "tukey" else 2
    least = tukey_critical(compared, df, alpha) * sigma * math.sqrt(2 / runs)
    ordered = means.sort_values(ascending=lower, kind="stable")
    found, first = [], math.nan
    for mean in ordered:
        if not abs(mean - first) <= least:  # also of the very first
            first = mean
            found.append(len(set(found)) + 1)
        else:
            found.append(found[-1])
    return pd.DataFrame(
        {"level": ordered.index, "mean": ordered.to_numpy(), "rank": found, "least": least}
    )
