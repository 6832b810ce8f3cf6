from functools import cache
from pathlib import Path

from fitspace.core.errors import UserError
from fitspace.plan import ENDS, STAGES, analysable, planned, usable
from fitspace.stages.running import wait_for_others
from fitspace.stages.sidecars import snapshot


wildcard_constraints:
    folder=r"[^/]+",


# Stage -> the picture that Snakemake's report shows of each of its runs, and in which category.
PICTURES = {
    "sample": ("sheet.png", "Samples"),
    "explain": ("difference.png", "Explanations"),
}


def made(stage):
    """The output of a stage's rule: its files, and the sidecar last.

    They are flagged update(). Otherwise Snakemake would delete them before a job that it is told to
    repeat, and after a job that fails. A finished stage stays, and its command says so. An unfinished
    stage is made again, file by file, each in one step. Snakemake's report shows the pictures.
    """
    names = [*STAGES[stage].outputs, f"{stage}.json"]
    files = {name: update(f"results/{STAGES[stage].room}/{{folder}}/{name}") for name in names}
    if stage in PICTURES:
        name, category = PICTURES[stage]
        caption, labels = f"../report/{stage}.rst", {"run": "{folder}"}
        files[name] = report(files[name], caption=caption, category=category, labels=labels)
    return list(files.values())


@cache
def plan():
    """The study's plan; made when a rule asks for it, so that `snakemake base` needs no base.

    First it waits for jobs that an earlier driver left behind. If that driver still runs,
    Snakemake's lock exists, and Snakemake itself refuses to start.
    """
    if workflow.is_main_process and workflow.executor_plugin and not workflow.dryrun:
        if not (workflow.execution_settings.lock and any(Path(".snakemake/locks").glob("*"))):
            wait_for_others()
    try:
        found = planned(STUDY, in_job=not workflow.is_main_process)
        if workflow.is_main_process and not workflow.dryrun:
            usable(found)
            if not all(run.finished for run in found.runs):
                snapshot()
        return found
    except UserError as error:
        raise WorkflowError(*error.problems)


def sidecars(*stages):
    """Input function: the sidecars of all of the study's runs at some stages."""

    def files(wildcards):
        return [s.sidecar.as_posix() for s in plan().stages.values() if s.name in stages]

    return files


def report_files(*names):
    """Input function: files of the study's report."""

    def files(wildcards):
        try:
            analysable(plan())
        except UserError as error:
            raise WorkflowError(*error.problems)
        return [f"reports/{plan().study.name}/{name}" for name in names]

    return files


def pictured(pattern, category):
    """Input function: the pictures in the study's report, for Snakemake's own report alone.

    Which ones there are is known when the report is there, so no rule names them as outputs. Each
    is flagged by itself: Snakemake 9 loses the flags of a function that gives plain paths.
    """
    caption = workflow.current_basedir.join(f"report/{category.lower()}.rst")

    def files(wildcards):
        if workflow.executor_plugin:  # jobs are run, which may change what is there
            return []
        found = sorted((Path("reports") / plan().study.name).glob(pattern))
        return [report(path.as_posix(), caption=caption, category=category) for path in found]

    return files


def own(files):
    """Input function: the same files, for a target of this study alone.

    Else a report that is asked for by its path would be made of this study, and its own files lost.
    """

    def checked(wildcards):
        if wildcards.study != plan().study.name:
            raise WorkflowError(
                f"{wildcards.study}: not the study of {STUDY}, {plan().study.name!r}; for another "
                "one: snakemake --config study=params/NAME.yaml"
            )
        return files(wildcards)

    return checked


def tracked(wildcards):
    """Input function: the stamp of an import into MLflow, if a run has yet to be made.

    If all results exist, made or pulled, there is nothing to import.
    """
    runs = plan().runs
    finished = all(run.finished for run in runs)
    return [] if finished else [f"results/.cache/tracked/{plan().study.name}"]


def needs(stage):
    """Input function: the sidecars that a stage's run needs from upstream stages.

    Always wrap it in ancient(): an existing file is valid, because its name says what made it and
    its hashes prove it. Its age means nothing (DVC keeps no times).
    """

    def files(wildcards):
        try:
            run = plan().run_of(stage, wildcards.folder)
        except UserError as error:
            raise WorkflowError(*error.problems)
        return [s.sidecar.as_posix() for s in run.upstream(stage)]

    return files
