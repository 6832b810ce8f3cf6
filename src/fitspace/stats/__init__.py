"""Analysis of designed experiments: tidy table in, tidy table out.

Tests are rows told by ``source``, comparisons by ``contrast`` (``a - b``, in the order of the
levels). Columns mean the same everywhere: estimate, se, df, t or F, num_df and den_df, p (of the
row alone), p_adjusted, low and high (of the family together). ``attrs["notes"]`` says what was set
aside or could not be done.
"""

from fitspace.stats.analysis import Analysis, analyse
from fitspace.stats.anova import anova, lack_of_fit
from fitspace.stats.control import dunnett, noninferiority
from fitspace.stats.correlation import correlation
from fitspace.stats.deciding import deciding, declared, separated
from fitspace.stats.estimability import components, in_design
from fitspace.stats.lenth import lenth
from fitspace.stats.means import cell_means, contrasts, means, pairs
from fitspace.stats.mediation import mediation
from fitspace.stats.mixed import mixed
from fitspace.stats.multiplicity import adjusted
from fitspace.stats.optimal import d_efficiency, d_optimal
from fitspace.stats.paired import abilities, agreement
from fitspace.stats.planning import (
    association,
    detectable,
    estimable,
    pilot_sigma,
    power,
    power_curve,
    runs_needed,
)
from fitspace.stats.powers import (
    effect_oneway,
    power_contrast,
    power_oneway,
    power_t,
    size_oneway,
)
from fitspace.stats.ranking import leave_one_level_out, leave_one_out, ranking
from fitspace.stats.ranks import ranks
from fitspace.stats.reading import anova_of_file, mixed_of_file, rows_for_json
from fitspace.stats.sizes import cohens_d, effect_sizes
from fitspace.stats.split_plot import split_plot
from fitspace.stats.transforms import box_cox
from fitspace.stats.trends import curve, surface, trend
from fitspace.stats.tuned import best_levels
from fitspace.stats.variances import brown_forsythe, games_howell, levene, welch
from fitspace.stats.within import general, within

__all__ = [
    "Analysis",
    "abilities",
    "adjusted",
    "agreement",
    "analyse",
    "anova",
    "anova_of_file",
    "association",
    "best_levels",
    "box_cox",
    "brown_forsythe",
    "cell_means",
    "cohens_d",
    "components",
    "contrasts",
    "correlation",
    "curve",
    "d_efficiency",
    "d_optimal",
    "deciding",
    "declared",
    "detectable",
    "dunnett",
    "effect_oneway",
    "effect_sizes",
    "estimable",
    "games_howell",
    "general",
    "in_design",
    "lack_of_fit",
    "leave_one_level_out",
    "leave_one_out",
    "lenth",
    "levene",
    "means",
    "mediation",
    "mixed",
    "mixed_of_file",
    "noninferiority",
    "pairs",
    "pilot_sigma",
    "power",
    "power_contrast",
    "power_curve",
    "power_oneway",
    "power_t",
    "ranking",
    "ranks",
    "rows_for_json",
    "runs_needed",
    "separated",
    "size_oneway",
    "split_plot",
    "surface",
    "trend",
    "welch",
    "within",
]
