"""The columns of an analysis of variance: the one description of them."""

from __future__ import annotations

# In the order in which they are printed; those of OPTIONAL only where they are asked for.
COLUMNS = {
    "stratum": "error stratum: an error term, or within",
    "source": "term of the model; residual is the last row (of a stratum)",
    "ss": "sum of squares; null for a robust test",
    "df": "degrees of freedom",
    "den_df": "degrees of freedom of a term's error, where each term has its own",
    "F": "F ratio; null where there is no error to test against, and for an exact fit",
    "p": "p value of F",
    "p_holm": "p by Holm's adjustment over all terms but blocks",
    "p_permutation": "p by permuting residuals (Freedman and Lane)",
    "eta2_p": "partial eta squared",
    "eta2_p_low": "lower limit of its 95% noncentral-F interval",
    "eta2_p_high": "upper limit",
    "omega2_p": "partial omega squared",
    "omega2_p_low": "lower limit of its 95% noncentral-F interval",
    "omega2_p_high": "upper limit",
    "mde": "minimum detectable effect: partial omega squared found with 80% power at level .05",
}
OPTIONAL = ("stratum", "den_df", "p_permutation")


def columns(*optional: str) -> list[str]:
    """Names of the columns of a result, with the optional ones that it has."""
    return [name for name in COLUMNS if name not in OPTIONAL or name in optional]
