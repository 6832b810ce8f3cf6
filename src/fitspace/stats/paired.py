"""Paired comparisons with ties: Bradley and Terry's model as Davidson has it (1970)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import chdtrc, stdtrit

from fitspace.core.errors import UserError
from fitspace.stats.digits import on_scale

OUTCOMES = ("left", "right", "tie")


def abilities(table: pd.DataFrame, rater: str | None = None) -> pd.DataFrame:
    """Abilities of items that were compared in pairs, with their limits.

    P(left wins) = δπᵢ / (δπᵢ + πⱼ + ν √(δπᵢπⱼ)), a tie the last term's share: ν is how often
    items tie (none where nobody tied), δ the advantage of the left place (none where items did not
    change places). Abilities are log π less their mean.

    Parameters
    ----------
    table : ``left`` and ``right`` (items), ``outcome`` (left, right or tie), and optionally
        ``count`` (how often; 1).
    rater : column with who judged. With two raters or more limits are those of raters in general:
        the scores of a rater's comparisons count as one (a sandwich, Student's t with the number
        of raters less one); without, comparisons count as independent.

    Returns
    -------
    One row per item, best first: ``item``, ``comparisons``, ``wins``, ``ties``, ``ability``,
    ``se``, ``low`` and ``high`` (95%). ``attrs``: ``tie`` (log ν), ``side`` (log δ) and its p,
    ``LR``, ``df`` and ``p`` of the likelihood ratio test that all items are equal, ``notes``.

    Raises
    ------
    UserError : fewer than two items, an unknown outcome, items that no chain of comparisons
        connects, or no finite ability.

    Examples
    --------
    >>> rows = [("a", "b", "left", 9), ("b", "a", "left", 3), ("a", "b", "tie", 4),
    ...         ("b", "c", "left", 8), ("c", "b", "left", 4), ("c", "a", "right", 7),
    ...         ("a", "c", "right", 2)]
    >>> votes = pd.DataFrame(rows, columns=["left", "right", "outcome", "count"])
    >>> abilities(votes)[["item", "wins", "ability"]].round(2).values.tolist()
    [['a', 16, 0.78], ['b', 11, 0.14], ['c', 6, -0.92]]
    """
    votes = _votes(table)
    items = sorted(set(votes["left"]) | set(votes["right"]), key=str)
    _connected(votes, items)
    every = pd.DataFrame({"item": items, **_counts(votes, items)})
    inside, endless = _finite(votes)
    if not len(inside):
        raise UserError(
            "ratings: every item won, or lost, all its comparisons; nothing to estimate"
        )
    kept = votes.loc[inside]
    items = [item for item in items if item not in endless]
    _connected(kept, items)
    model = _Model(kept, items)
    fit, equal = model.fit(), model.fit(equal=True)
    judges = None if rater is None else table.loc[inside, rater].to_numpy()
    covariance = model.covariance(fit.x, judges)
    raters = 0 if judges is None else len(set(judges))
    reach = stdtrit(raters - 1, 0.975) if raters > 1 else 1.959963984540054
    ability = on_scale(fit.x[: len(items)], float(np.abs(fit.x[: len(items)]).max()))
    se = np.sqrt(np.clip(np.diag(covariance)[: len(items)], 0, None))
    limits = {"ability": ability, "se": se, "low": ability - reach * se,
              "high": ability + reach * se}  # fmt: skip
    found = every.merge(pd.DataFrame({"item": items, **limits}), on="item", how="left")
    order = found["ability"].fillna(found["item"].map(endless) * math.inf)
    lr, df = 2 * (equal.fun - fit.fun), len(items) - 1
    notes = [
        f"{item}: {'won' if sign > 0 else 'lost'} all comparisons with those that have an ability, "
        "so its own has no estimate"
        for item, sign in endless.items()
    ]
    side = fit.x[model.side] if model.side else math.nan
    of_side = covariance[model.side, model.side] if model.side else 0.0
    found.attrs |= {
        "tie": fit.x[model.tie] if model.tie else -math.inf,
        "side": side,
        "side_p": float(chdtrc(1, side**2 / of_side)) if of_side > 0 else math.nan,
        "LR": float(lr),
        "df": df,
        "p": float(chdtrc(df, lr)),
        "notes": notes,
    }
    return found.loc[order.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def _finite(votes: pd.DataFrame) -> tuple[pd.Index, dict]:
    """The votes among items whose abilities are finite, and the others: 1 if they won all, -1 if
    they lost all."""
    endless: dict = {}
    while len(votes):
        items = sorted(set(votes["left"]) | set(votes["right"]), key=str)
        counts = pd.DataFrame(_counts(votes, items), index=items)
        won = counts.index[counts["wins"] == counts["comparisons"]]
        lost = counts.index[counts["wins"] + counts["ties"] == 0]
        if not len(won) + len(lost):
            break
        endless |= dict.fromkeys(won, 1) | dict.fromkeys(lost, -1)
        votes = votes[~votes["left"].isin(endless) & ~votes["right"].isin(endless)]
    return votes.index, endless


def agreement(table: pd.DataFrame, pair: str, rater: str) -> dict[str, float]:
    """Krippendorff's alpha of raters who judged the same pairs (nominal outcomes).

    Also the numbers of pairs that two or more judged, and of these raters. NaN where there is no
    such pair. Hayes and Krippendorff (2007).

    >>> votes = pd.DataFrame({"pair": [1, 1, 2, 2, 3, 3], "rater": list("ab") * 3,
    ...                       "outcome": ["x", "x", "y", "y", "x", "y"]})
    >>> round(agreement(votes, "pair", "rater")["alpha"], 3)
    0.444
    """
    twice = table[table.groupby(pair)[rater].transform("nunique") > 1]
    if twice.empty:
        return {"alpha": math.nan, "pairs": 0, "raters": int(table[rater].nunique())}
    counts = twice.groupby([pair, "outcome"]).size().unstack(fill_value=0)
    judged = counts.sum(axis=1)
    within = (counts * (counts - 1)).sum(axis=1) / (judged - 1)
    total, of_each = judged.sum(), counts.sum(axis=0)
    observed = within.sum() / total
    expected = (of_each * (of_each - 1)).sum() / (total * (total - 1))
    alpha = math.nan if expected == 1 else 1 - (1 - observed) / (1 - expected)
    return {"alpha": float(alpha), "pairs": len(counts), "raters": int(twice[rater].nunique())}


def _votes(table: pd.DataFrame) -> pd.DataFrame:
    if odd := sorted(set(table["outcome"]) - set(OUTCOMES)):
        raise UserError(f"ratings: outcome {odd[0]!r}; allowed: {', '.join(OUTCOMES)}")
    votes = table[["left", "right", "outcome"]].copy()
    votes["count"] = table.get("count", 1)
    if len(set(votes["left"]) | set(votes["right"])) < 2:
        raise UserError("ratings: fewer than two items; nothing to compare")
    return votes


def _connected(votes: pd.DataFrame, items: list) -> None:
    """Raises UserError if nothing connects some items with the first."""
    reached, edge = {items[0]}, {items[0]}
    pairs = set(zip(votes["left"], votes["right"], strict=True))
    while edge:
        near = {b for a, b in pairs if a in edge} | {a for a, b in pairs if b in edge}
        edge = near - reached
        reached |= edge
    if apart := [str(item) for item in items if item not in reached]:
        raise UserError(
            f"ratings: {', '.join(apart)}: never compared with the others, not even by way of a "
            "third; needed: comparisons that connect all"
        )


def _counts(votes: pd.DataFrame, items: list) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {"comparisons": [], "wins": [], "ties": []}
    for item in items:
        left, right = votes["left"] == item, votes["right"] == item
        own = votes[left | right]
        won = (left & votes["outcome"].eq("left")) | (right & votes["outcome"].eq("right"))
        found["comparisons"].append(int(own["count"].sum()))
        found["wins"].append(int(votes.loc[won, "count"].sum()))
        found["ties"].append(int(own.loc[own["outcome"].eq("tie"), "count"].sum()))
    return found


class _Model:
    """The likelihood. Parameters: abilities (summing to 0), then log ν and log δ, where there are
    any; ``tie`` and ``side`` are their places, 0 for none."""

    def __init__(self, votes: pd.DataFrame, items: list):
        place = {item: i for i, item in enumerate(items)}
        self.left = votes["left"].map(place).to_numpy()
        self.right = votes["right"].map(place).to_numpy()
        self.outcome = votes["outcome"].map({"left": 0, "right": 1, "tie": 2}).to_numpy()
        self.count = votes["count"].to_numpy(float)
        self.items = size = len(items)
        self.tie = size if (self.outcome == 2).any() else 0
        size += bool(self.tie)
        turned = set(zip(self.left, self.right, strict=True))
        both = any((b, a) in turned for a, b in turned)
        self.side = size if both else 0
        self.size = size + bool(self.side)

    def fit(self, equal: bool = False):
        """The maximum; ``equal``: with abilities that are all 0."""
        free = np.arange(self.items if equal else 0, self.size)
        start = np.zeros(self.size)

        def whole(x: np.ndarray) -> np.ndarray:
            start[free] = x
            return start

        def loss(x: np.ndarray) -> float:
            theta = whole(x)
            # A sum of abilities other than 0 changes nothing: the ridge keeps it at 0.
            centre = 0.5 * theta[: self.items].sum() ** 2
            return -float(self.count @ self._log(theta)) + centre

        def slope(x: np.ndarray) -> np.ndarray:
            theta = whole(x)
            gradient = -(self.count @ self._scores(theta))
            gradient[: self.items] += theta[: self.items].sum()
            return gradient[free]

        if not len(free):
            return _Fit(start.copy(), loss(np.zeros(0)))
        found = minimize(loss, np.zeros(len(free)), jac=slope, method="BFGS",
                         options={"gtol": 1e-9, "maxiter": 10_000})  # fmt: skip
        return _Fit(whole(found.x).copy(), float(found.fun))

    def _terms(self, theta: np.ndarray) -> np.ndarray:
        """log of the three terms, shape (rows, 3)."""
        first = theta[self.left] + (theta[self.side] if self.side else 0.0)
        second = theta[self.right]
        both = (first + second) / 2 + (theta[self.tie] if self.tie else -np.inf)
        return np.column_stack([first, second, both])

    def _log(self, theta: np.ndarray) -> np.ndarray:
        terms = self._terms(theta)
        own = np.take_along_axis(terms, self.outcome[:, None], 1)[:, 0]
        return own - np.logaddexp.reduce(terms, axis=1)

    def _scores(self, theta: np.ndarray) -> np.ndarray:
        """Gradients of each row's log-likelihood, shape (rows, parameters)."""
        terms = self._terms(theta)
        share = np.exp(terms - np.logaddexp.reduce(terms, axis=1)[:, None])
        designs = self._designs()
        expected = np.einsum("nk,nkp->np", share, designs)
        own = np.take_along_axis(designs, self.outcome[:, None, None], 1)[:, 0]
        return own - expected

    def _designs(self) -> np.ndarray:
        """Derivatives of the log terms, shape (rows, 3, parameters)."""
        rows = np.arange(len(self.left))
        found = np.zeros((len(rows), 3, self.size))
        found[rows, 0, self.left] = 1
        found[rows, 1, self.right] = 1
        if self.side:
            found[:, 0, self.side] = 1
        found[:, 2] = (found[:, 0] + found[:, 1]) / 2
        if self.tie:
            found[:, 2, self.tie] = 1
        return found

    def covariance(self, theta: np.ndarray, raters: np.ndarray | None) -> np.ndarray:
        """Of the estimates: the inverse information, or the sandwich of the raters' scores."""
        terms = self._terms(theta)
        share = np.exp(terms - np.logaddexp.reduce(terms, axis=1)[:, None])
        designs = self._designs()
        mean = np.einsum("nk,nkp->np", share, designs)
        second = np.einsum("n,nk,nkp,nkq->pq", self.count, share, designs, designs)
        information = second - np.einsum("n,np,nq->pq", self.count, mean, mean)
        # Singular along the sum of the abilities, which is fixed.
        inverse = np.linalg.pinv(information, rcond=1e-10, hermitian=True)
        if raters is None or len(set(raters)) < 2:
            return inverse
        scores = self.count[:, None] * self._scores(theta)
        sums = pd.DataFrame(scores).groupby(raters).sum().to_numpy()
        few = len(sums) / (len(sums) - 1)
        return few * inverse @ (sums.T @ sums) @ inverse


class _Fit:
    def __init__(self, x: np.ndarray, fun: float):
        self.x, self.fun = x, fun
