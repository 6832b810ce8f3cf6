"""Analysis of designed experiments: tidy table in, tidy table out."""

from fitspace.stats.analysis import Analysis, analyse
from fitspace.stats.anova import anova, lack_of_fit
from fitspace.stats.equivalence import equivalence
from fitspace.stats.estimability import components, in_design
from fitspace.stats.lenth import lenth
from fitspace.stats.means import cell_means, contrasts, means, pairs
from fitspace.stats.mixed import mixed
from fitspace.stats.multiplicity import adjusted
from fitspace.stats.optimal import d_efficiency, d_optimal
from fitspace.stats.planning import (
    association,
    detectable,
    estimable,
    pilot_sigma,
    power,
    power_curve,
    runs_needed,
)
from fitspace.stats.ranking import leave_one_out, ranking
from fitspace.stats.reading import anova_of_file, rows_for_json
from fitspace.stats.strata import over_tasks
from fitspace.stats.transforms import box_cox
from fitspace.stats.variances import brown_forsythe, games_howell, levene, welch

__all__ = [
    "Analysis",
    "analyse",
    "anova",
    "anova_of_file",
    "association",
    "box_cox",
    "brown_forsythe",
    "adjusted",
    "cell_means",
    "components",
    "contrasts",
    "d_efficiency",
    "d_optimal",
    "detectable",
    "equivalence",
    "estimable",
    "games_howell",
    "in_design",
    "lack_of_fit",
    "leave_one_out",
    "lenth",
    "levene",
    "means",
    "mixed",
    "over_tasks",
    "pairs",
    "pilot_sigma",
    "power",
    "power_curve",
    "ranking",
    "rows_for_json",
    "runs_needed",
    "welch",
]
