from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from fitspace.core.errors import UserError
from fitspace.plan import STAGES, planned
from fitspace.stages.running import wait_for_others


wildcard_constraints:
    folder=r"[^/]+",


def made(stage):
    """The output of a stage's rule: its files, and the sidecar last.

    They are flagged update(). Otherwise Snakemake would delete them before a job that it is told to
    repeat, and after a job that fails. A finished stage stays, and its command says so. An unfinished
    stage is made again, file by file, each in one step.
    """
    names = [*STAGES[stage].outputs, f"{stage}.json"]
    return [update(f"results/{STAGES[stage].room}/{{folder}}/{name}") for name in names]


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
        return planned(STUDY)
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
        return [f"reports/{plan().study.name}/{name}" for name in names]

    return files


def tracked(wildcards):
    """Input function: the stamp of an import into MLflow, if a run has yet to be made.

    If all results exist, made or pulled, there is nothing to import.
    """
    runs = plan().runs
    finished = all(run.evaluate.sidecar.exists() for run in runs)
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


def denoiser(wildcards):
    """Input function: the denoiser's weights of an embedded base."""
    component = {"emoji-unet": "unet", "emoji-dit": "transformer"}[wildcards.base]
    return ancient(f"models/{wildcards.base}/{component}/diffusion_pytorch_model.safetensors")
