"""The story of a run: found finished, or claimed, made and recorded."""

from pathlib import Path

from peftkit.recipe import Recipe
from peftkit.record import RunRecord, Tuning
from peftkit.run_folder import RunFolder
from peftkit.sources import Source, find_model
from peftkit.world import World, launched_ranks, on_main, say


def train(
    recipe: Recipe,
    root: Path = Path("runs"),
    again: bool = False,
    inexact: bool = False,
    tuning: Tuning | None = None,
) -> RunRecord:
    """Train, evaluate and record `recipe`; resume what was interrupted, return what is done.

    `again` runs a finished recipe once more, beside the first; `inexact` lets a run be resumed in
    another world than it began in; `tuning` says how a comparison chose the learning rate, and goes
    into the record. Every rank returns the same record. Raises `PeftkitError`.
    """
    # alone, a finished run is found and a taken folder refused before torch is imported
    world = World.enter(recipe.training) if launched_ranks() > 1 else None
    path, model, data = on_main(world, lambda: place_of(recipe, Path(root), again))
    folder = RunFolder(path)
    try:
        record = on_main(world, lambda: finished_or_claimed(folder, recipe, model, data))
        if record is None:
            from peftkit.attempt import Attempt
            from peftkit.verdicts import check_judge

            check_judge(recipe.task)
            world = world or World.enter(recipe.training)
            return Attempt(recipe, model, data, folder, world, inexact, tuning).make()
        say(world, f"{folder.path} is finished: nothing to do (--again runs it once more)")
        return record
    finally:
        folder.release()


def place_of(recipe: Recipe, root: Path, again: bool) -> tuple[Path, Source, Source]:
    """The run's folder, and the model and the data that name it."""
    model, data = find_model(recipe.model), recipe.data.resolve()
    return RunFolder.of(root, recipe, model, data, again).path, model, data


def finished_or_claimed(
    folder: RunFolder, recipe: Recipe, model: Source, data: Source
) -> RunRecord | None:
    """The run's record if it is finished; else None, and `folder` is this process's."""
    digest = recipe.digest(model, data)
    folder.check(digest)
    if not folder.finished:
        folder.claim(digest)
    # another process may have finished it between the two
    return folder.record if folder.finished else None
