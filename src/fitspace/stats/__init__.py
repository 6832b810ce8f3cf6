"""Analysis of designed experiments: tidy table in, tidy table out."""

from fitspace.stats.analysis import Analysis, analyse, in_design
from fitspace.stats.anova import anova, lack_of_fit
from fitspace.stats.estimability import components
from fitspace.stats.means import cell_means, marginal_means, pairs
from fitspace.stats.reading import anova_of_file, rows_for_json
from fitspace.stats.variances import brown_forsythe, levene, welch

__all__ = [
    "Analysis",
    "analyse",
    "anova",
    "anova_of_file",
    "brown_forsythe",
    "cell_means",
    "components",
    "in_design",
    "lack_of_fit",
    "levene",
    "marginal_means",
    "pairs",
    "rows_for_json",
    "welch",
]
