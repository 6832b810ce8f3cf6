"""Error rates of the tests on the committed designs, with the spreads that their own runs show.

    python benchmarks/error_rates.py [simulations]

Responses are simulated without any effect (with none beyond the tasks, for claims on tasks in
general), their standard deviations those of the levels of the committed runs. A row says how often
a procedure at 5% finds something, or how often its intervals all hold. Ten minutes on one core.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import fdtrc, stdtr, stdtrit

from fitspace import stats
from fitspace.stats.clusters import own_spreads
from fitspace.stats.fits import LinearFit
from fitspace.stats.given import given
from fitspace.stats.linear import Model
from fitspace.stats.means import Grid
from fitspace.stats.multiplicity import Largest, tukey_critical

ROOT = Path(__file__).parents[1]
ALPHA = 0.05


class Design:
    """A committed table of runs, its model, and how its residuals spread by level.

    ``path``: a study's, or that of an earlier one of methods on seven styles.
    """

    def __init__(self, path: str, response: str, formula: str, keep=lambda runs: runs):
        runs = keep(pd.read_csv(ROOT / path)).reset_index(drop=True)
        runs["y"] = np.log(runs[response]) if response == "fd_effnet" else runs[response]
        self.runs, self.formula = runs, formula
        self.found = given(runs, formula)
        self.model = Model(self.found.data(runs), self.found.terms)
        self.fit = LinearFit(self.model)
        self.left = 1 - self.model.leverage

    def spread(self, factor: str | None) -> np.ndarray:
        """Standard deviations (n,) by the levels of a factor, or one for all."""
        squares = pd.Series(self.model.residuals**2)
        left = pd.Series(self.left)
        if factor is None:
            return np.full(len(self.runs), (squares.sum() / left.sum()) ** 0.5)
        groups = self.runs[factor]
        shares = squares.groupby(groups).sum() / left.groupby(groups).sum()
        return np.sqrt(groups.map(shares).to_numpy())

    def noise(self, sd: np.ndarray, simulations: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.standard_normal((len(sd), simulations)) * sd[:, None]

    def residuals(self, y: np.ndarray) -> np.ndarray:
        basis = self.model.basis
        return y - basis @ (basis.T @ y)

    def F(self, factor: str, y: np.ndarray) -> np.ndarray:
        """p values of the F test (simulations,)."""
        basis, _ = self.model.added((factor,), 2)
        df = basis.shape[1]
        error = np.sum(self.residuals(y) ** 2, axis=0) / self.model.df
        return fdtrc(df, self.model.df, np.sum((basis.T @ y) ** 2, axis=0) / df / error)

    def robust(self, factor: str, y: np.ndarray, kind: str) -> np.ndarray:
        """p values of HC3 as R has it, or of hc2 and hc3 with their degrees of freedom."""
        basis, _ = self.model.added((factor,), 2)
        df, power = basis.shape[1], 1 if kind == "cr2" else 2
        weights = self.residuals(y) ** 2 / np.maximum(self.left, 1e-9)[:, None] ** power
        cov = np.einsum("nq,ns,nr->sqr", basis, weights, basis)
        found = (basis.T @ y).T
        ratio = np.einsum("sq,sq->s", found, np.linalg.solve(cov, found[..., None])[..., 0]) / df
        if kind == "hc3":
            return fdtrc(df, self.model.df, ratio)
        _, _, left = self.own_spreads(kind).joint(basis.T @ self.fit.basis)
        if not left > 0:
            return np.ones(y.shape[1])
        return fdtrc(df, left, ratio * left / (left + df - 1))

    def own_spreads(self, kind: str) -> LinearFit:
        return own_spreads(self.model, kind)

    def differences(self, factor: str) -> np.ndarray:
        grid = Grid(self.fit, factor, None)
        rows = grid.weights(grid.at)
        weights = np.array([rows[i] - rows[j] for i, j in combinations(range(len(rows)), 2)])
        known = self.fit.rows(weights)
        return known[0][known[1]] @ self.fit.basis.T

    def pairs(self, factor: str, y: np.ndarray) -> np.ndarray:
        """The largest t of all pairs over Tukey's point (simulations,): above 1 is an error."""
        weights = self.differences(factor)
        error = np.sum(self.residuals(y) ** 2, axis=0) / self.model.df
        se = np.linalg.norm(weights, axis=1)[:, None] * np.sqrt(error)
        k = len(self.model.data.levels[factor])
        return np.max(np.abs(weights @ y) / se, axis=0) / tukey_critical(k, self.model.df, ALPHA)

    def robust_pairs(self, factor: str, y: np.ndarray, kind: str) -> np.ndarray:
        """The same by hc2 or hc3, each pair on its own degrees of freedom."""
        weights, power = self.differences(factor), 1 if kind == "cr2" else 2
        squares = self.residuals(y) ** 2 / np.maximum(self.left, 1e-9)[:, None] ** power
        se = np.sqrt(weights**2 @ squares)
        fit, k = self.own_spreads(kind), len(self.model.data.levels[factor])
        df = [round(fit.df(row @ self.fit.basis), 3) for row in weights]
        ends = [tukey_critical(k, one, ALPHA) for one in df]
        return np.max(np.abs(weights @ y) / se / np.array(ends)[:, None], axis=0)


def shown(rates: dict[str, np.ndarray], what: str, where: str, rows: list) -> None:
    for name, errors in rates.items():
        rows.append((where, what, name, float(np.mean(errors))))
        print("|", " | ".join([where, what, name, f"{np.mean(errors):.3f}"]), "|", flush=True)


def factorial(simulations: int, rows: list) -> None:
    """The 16 legal pairs of input and output on one task, two seeds; and all points."""
    keep = lambda runs: runs[runs["arm"] == "adapter"]  # noqa: E731
    design = Design("reports/emoji/runs.csv", "clip_i", "y ~ seed + input + output", keep)
    for scenario in (None, "input", "output"):
        y = design.noise(design.spread(scenario), simulations, seed=1)
        where = "emoji, " + ("equal spreads" if scenario is None else f"spreads by {scenario}")
        for factor in ("input", "output"):
            p = {"F": design.F(factor, y), "HC3": design.robust(factor, y, "hc3")}
            p["HC2 with its df"] = design.robust(factor, y, "cr2")
            p["F and HC2 with its df"] = np.maximum(p["F"], p["HC2 with its df"])
            rates = {name: value < ALPHA for name, value in p.items()}
            rates["Tukey, any pair"] = design.pairs(factor, y) > 1
            rates |= own_pairs(design, factor, y, rates["Tukey, any pair"])
            shown(rates, factor, where, rows)
    design = Design("reports/emoji/runs.csv", "clip_i", "y ~ seed + point")
    y = design.noise(design.spread("point"), simulations, seed=4)
    shown(controls(design, "point", "none", y), "point", "emoji, spreads by point", rows)


def own_pairs(design: Design, factor: str, y: np.ndarray, tukey: np.ndarray) -> dict:
    rates = {}
    for kind, name in (("cr2", "HC2"), ("cr3", "HC3")):
        own = design.robust_pairs(factor, y, kind) > 1
        rates |= {f"{name} with its df, any pair": own}
        rates |= {f"Tukey and {name} with its df, any pair": own & tukey}
    return rates


def controls(design: Design, factor: str, control: str, y: np.ndarray) -> dict:
    plain = against(design, factor, control, y, None)
    rates = {f"Dunnett against {control}, any": plain}
    for kind, name in (("cr2", "HC2"), ("cr3", "HC3")):
        both = plain & against(design, factor, control, y, kind)
        rates[f"Dunnett against {control}, and by {name} with its df, any"] = both
    return rates


def fixed_tasks(simulations: int, rows: list) -> None:
    """Fifteen arms on seven tasks, two seeds: claims about these tasks."""
    for response in ("fd_effnet", "clip_i", "diversity"):
        design = Design("tests/data/methods.csv", response, "y ~ task*arm + task:seed")
        y = design.noise(design.spread("arm"), simulations, seed=2)
        p = {"F": design.F("arm", y), "HC2 with its df": design.robust("arm", y, "cr2")}
        p["F and HC2 with its df"] = np.maximum(p["F"], p["HC2 with its df"])
        rates = {name: value < ALPHA for name, value in p.items()}
        rates["Tukey, any pair"] = design.pairs("arm", y) > 1
        rates |= own_pairs(design, "arm", y, rates["Tukey, any pair"])
        rates |= controls(design, "arm", "none", y)
        shown(rates, "arm", f"methods on styles, {response}, spreads by arm", rows)
        noninferior(design, y, f"methods on styles, {response}, spreads by arm", rows)


def against(design: Design, factor: str, control: str, y: np.ndarray, kind, sides=2):
    """Whether any level is said to differ from the control (simulations,): Dunnett with one error,
    Šidák (one-sided: Bonferroni) with each difference's own."""
    grid = Grid(design.fit, factor, None)
    at = [grid.name(level) for level in grid.at].index(control)
    weights = grid.weights(grid.at)
    weights = np.delete(weights - weights[at], at, axis=0)
    rows = design.fit.rows(weights)[0]
    seen, largest = rows @ design.fit.basis.T, Largest.of(design.fit.correlation(weights), sides)
    if kind is None:
        error = np.sum(design.residuals(y) ** 2, axis=0) / design.model.df
        se = np.linalg.norm(seen, axis=1)[:, None] * np.sqrt(error)
        ends = np.full(len(rows), largest.critical(design.model.df, ALPHA))
    else:
        power = 1 if kind == "cr2" else 2
        squares = design.residuals(y) ** 2 / np.maximum(design.left, 1e-9)[:, None] ** power
        se, fit = np.sqrt(seen**2 @ squares), design.own_spreads(kind)
        share = -np.expm1(np.log1p(-ALPHA) / len(rows)) if sides == 2 else ALPHA / len(rows)
        ends = np.array([-stdtrit(round(fit.df(row), 3), share / sides) for row in rows])
    t = seen @ y / se
    return np.max((np.abs(t) if sides == 2 else t) / ends[:, None], axis=0) > 1


def noninferior(design: Design, y: np.ndarray, where: str, rows: list) -> None:
    """Every arm worse than full by just the margin: any claim is false."""
    runs, arms = design.runs, [a for a in design.runs["arm"].unique() if a not in ("full", "none")]
    order = runs.sort_values(["task", "seed"]).index
    wide = {arm: order[runs.loc[order, "arm"] == arm].to_numpy() for arm in [*arms, "full"]}
    error = np.sum(design.residuals(y) ** 2, axis=0) / design.model.df
    tasks, pairs = runs["task"].nunique(), len(wide["full"])
    own, pooled = [], []
    for arm in arms:
        apart = y[wide[arm]] - y[wide["full"]]
        within = apart.reshape(tasks, pairs // tasks, -1)
        squares = np.sum((within - within.mean(axis=1, keepdims=True)) ** 2, axis=(0, 1))
        df = pairs - tasks
        own.append(stdtr(df, -apart.mean(axis=0) / np.sqrt(squares / df / pairs)))
        pooled.append(stdtr(design.model.df, -apart.mean(axis=0) / np.sqrt(2 * error / pairs)))
    for name, p in {
        "own variance of each pair, Holm": own,
        "pooled variance, Holm": pooled,
    }.items():
        rates = {name: np.min(p, axis=0) * len(arms) < ALPHA}
        shown(rates, "as good as full, any", where, rows)


def general(simulations: int, rows: list) -> None:
    """Claims on tasks in general: arm by task varies as it does in the committed runs."""
    for response in ("fd_effnet", "clip_i", "diversity"):
        design = Design("tests/data/methods.csv", response, "y ~ task*arm + task:seed")
        runs = design.runs
        cells = runs.groupby(["task", "arm"], sort=False)["y"].mean().unstack()
        apart = (
            cells.sub(cells.mean(axis=1), axis=0).sub(cells.mean(), axis=1)
            + cells.to_numpy().mean()
        )
        rng, where = np.random.default_rng(3), f"methods on styles, {response}"
        spread = design.spread("arm")
        column, row = runs["arm"].map(cells.columns.get_loc), runs["task"].map(cells.index.get_loc)
        found = {name: [] for name in ("F uncorrected", "Greenhouse-Geisser", "Huynh-Feldt")}
        mixed, averaged = [], []
        for s in range(simulations):
            # A task's arms: the committed tasks' deviations, mixed normally.
            mix = rng.standard_normal((len(cells), len(cells))) / (len(cells) - 1) ** 0.5
            shift = mix @ apart.to_numpy()
            y = shift[row, column] + spread * rng.standard_normal(len(runs))
            table = runs[["task", "arm", "seed"]].assign(y=y)
            got = stats.within(table, "y", "task", "arm").iloc[0]
            for name, key in zip(found, ("p", "p_gg", "p_hf"), strict=True):
                found[name].append(got[key] < ALPHA)
            if s < simulations // 4:
                lost = table.drop(index=int(rng.integers(len(table))))
                mixed.append(stats.mixed(lost, "y ~ arm", ["task", "task:arm"])["p"][0] < ALPHA)
                averaged.append(stats.within(lost, "y", "task", "arm")["p_gg"][0] < ALPHA)
        found["Greenhouse-Geisser, one run lost"] = averaged
        found["Kenward-Roger, one run lost"] = mixed
        shown({k: np.array(v) for k, v in found.items()}, "arm for tasks in general", where, rows)


def main() -> None:
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    print("| design | claim | procedure | error rate |\n|---|---|---|---|")
    rows: list = []
    factorial(simulations, rows)
    fixed_tasks(simulations, rows)
    general(simulations // 2, rows)


if __name__ == "__main__":
    main()
