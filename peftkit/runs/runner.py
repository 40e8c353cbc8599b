"""Train a recipe: return the record of a finished run, or claim its directory and run it."""

from pathlib import Path

from peftkit.config.recipe import Recipe
from peftkit.deprecation import accept_earlier
from peftkit.hub.resolve import find_model
from peftkit.hub.source import Source
from peftkit.records.record import RunRecord, Tuning
from peftkit.records.run_dir import RunDir
from peftkit.runtime.distributed import World, launched_ranks, on_main, say


@accept_earlier(again="rerun", inexact="allow_inexact_resume")
def train(
    recipe: Recipe,
    root: Path = Path("runs"),
    rerun: bool = False,
    allow_inexact_resume: bool = False,
    tuning: Tuning | None = None,
) -> RunRecord:
    """Train, evaluate and record `recipe`; an interrupted run is resumed, a finished one returned.

    `rerun` trains a finished recipe again, in a directory of its own; `allow_inexact_resume` allows
    to resume with other ranks or threads than the run began with; `tuning` is how a comparison
    chose the learning rate, for the record. Every rank returns the same record. Raises
    `PeftkitError`.
    """
    # a single process finds a finished or a claimed run before it imports torch
    world = World.enter(recipe.training) if launched_ranks() > 1 else None
    path, model, data = on_main(world, lambda: resolve_run(recipe, Path(root), rerun))
    folder = RunDir(path)
    try:
        record = on_main(world, lambda: find_record_or_claim(folder, recipe, model, data))
        if record is None:
            from peftkit.evaluation.code_execution import check_grader
            from peftkit.runs.pipeline import RunPipeline

            check_grader(recipe.task)
            world = world or World.enter(recipe.training)
            return RunPipeline(
                recipe, model, data, folder, world, allow_inexact_resume, tuning
            ).run()
        say(world, f"{folder.path} is finished: nothing to do (--rerun trains it again)")
        return record
    finally:
        folder.release()


def resolve_run(recipe: Recipe, root: Path, rerun: bool) -> tuple[Path, Source, Source]:
    """The run's directory, and the model and the data that its name is made of."""
    model, data = find_model(recipe.model), recipe.data.resolve()
    return RunDir.of(root, recipe, model, data, rerun).path, model, data


def find_record_or_claim(
    folder: RunDir, recipe: Recipe, model: Source, data: Source
) -> RunRecord | None:
    """The run's record if it is finished; else None, and this process has claimed `folder`."""
    digest = recipe.digest(model, data)
    folder.check(digest)
    if not folder.finished:
        folder.claim(digest)
    # another process may have finished it in the meantime
    return folder.record if folder.finished else None
