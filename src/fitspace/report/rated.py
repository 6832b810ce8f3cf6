"""What people preferred: abilities of the points, and whether the metrics rank them alike."""

from __future__ import annotations

import pandas as pd

from fitspace import stats
from fitspace.core.errors import UserError
from fitspace.metrics import METRICS
from fitspace.rating import Answers

ABILITIES, TESTS = "ratings.csv", "ratings_tests.csv"


def tables(
    answers: Answers | None, runs: pd.DataFrame, primary: str
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """`ABILITIES`, a row for each point, and `TESTS`, one row; empty without ratings.

    Also returns what is to be said of them, in sentences.
    """
    empty = {ABILITIES: pd.DataFrame(), TESTS: pd.DataFrame()}
    if answers is None:
        return empty, []
    votes = pd.DataFrame(answers.rows)
    strange = sorted((set(votes["left"]) | set(votes["right"])) - set(runs["point"]))
    if strange:
        return empty, [f"ratings: {strange[0]!r} is no point of the study now; not analysed"]
    try:
        found = stats.abilities(votes, rater="rater")
    except UserError as error:
        return empty, error.problems
    shared = votes.assign(outcome=votes["winner"])
    alike = stats.agreement(shared, "pair", "rater")
    row = {
        "raters": votes["rater"].nunique(),
        "judgements": len(votes),
        "ties": int(votes["outcome"].eq("tie").sum()),
        **{name: found.attrs[name] for name in ("LR", "df", "p", "side", "side_p")},
        "alpha": alike["alpha"],
        "judged_twice": alike["pairs"],
        "metric": primary,
        **_beside(found, runs, primary),
    }
    return {
        ABILITIES: found.rename(columns={"item": "point"}),
        TESTS: pd.DataFrame([row]),
    }, list(found.attrs["notes"])


def _beside(found: pd.DataFrame, runs: pd.DataFrame, primary: str) -> dict[str, float]:
    """Spearman's correlation with the primary metric, which is turned so that higher is better."""
    sign = -1 if METRICS[primary].lower else 1
    finished = runs[runs["status"].eq("ok")]
    means = sign * finished.groupby("point", sort=False)[primary].mean()
    both = pd.DataFrame({"ability": found.set_index("item")["ability"], "metric": means}).dropna()
    measured = stats.correlation(both, "ability", "metric").set_index("measure").loc["Spearman"]
    return {f"rho{end}": measured[name] for end, name in
            (("", "estimate"), ("_low", "low"), ("_high", "high"))}  # fmt: skip
