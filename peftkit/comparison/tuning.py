"""Learning-rate search: the same number of trials for each strategy, scored on validation rows."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.comparison.settings import Budget
from peftkit.config.recipe import Recipe
from peftkit.errors import DiskError, RunError, RunStopped
from peftkit.hub.source import Source
from peftkit.metrics.registry import find_metric, gain
from peftkit.planning.plan import plan_steps
from peftkit.records.record import RunRecord, Trial, Tuning
from peftkit.records.run_dir import RunDir
from peftkit.runs.pipeline import RunInputs, RunPipeline
from peftkit.runtime.distributed import World, say
from peftkit.training.trainer import TrainingResult

if TYPE_CHECKING:
    import optuna

EVALUATIONS = 4
"""Evaluations per trial: it may be pruned after each but the last."""
PRUNING_MARGIN = 2.0
"""Standard errors of the difference of two proportions on the validation rows: a trial further
below the best earlier one is pruned. The error of other scores (perplexity, RMSE, a correlation) is
not known beforehand, and their trials are never pruned."""


class TrialPipeline(RunPipeline):
    """A run that is scored on the validation split alone and saves no artifact."""

    def _evaluate_and_record(self, inputs: RunInputs, result: TrainingResult) -> RunRecord:
        return RunRecord(
            **self._common_fields(inputs),
            status="finished",
            validation=result.best,
            steps=result.steps,
        )


@dataclass(frozen=True)
class LearningRateSearch:
    """The search for the learning rate of one variant."""

    recipe: Recipe
    budget: Budget
    rows: dict[str, int]
    """Rows of the runs by split: the trials are scored on the same validation rows."""
    root: Path
    """The comparison's directory, with Optuna's journal and the trials."""

    @property
    def metric(self) -> str:
        """The metric on the validation split to choose by."""
        return self.recipe.task.validation_metric

    def rates(self) -> list[float]:
        """The learning rates to try, the default first."""
        default, powers = self.recipe.strategy.default_lr, [0]
        for power in range(1, self.budget.trials):
            powers += [power, -power]
        return [
            float(f"{default * self.budget.factor**p:.2g}") if p else default
            for p in powers[: self.budget.trials]
        ]

    def trial_recipe(self, rate: float) -> Recipe:
        """The recipe of one trial: that of the runs, on fewer rows and with the budget's seed."""
        changes: dict[str, Any] = {
            "training__lr": rate,
            "training__seed": self.budget.seed,
            "training__patience": None,
            "training__keep": "best",
        }
        if self.budget.rows is not None:
            changes["data__limit__train"] = self.budget.rows
        if self.rows["validation"]:
            changes["data__limit__validation"] = self.rows["validation"]
        recipe = self.recipe.but(**changes)
        steps = plan_steps(recipe, self.budget.rows or self.rows["train"])
        every = max(1, math.ceil(steps / EVALUATIONS)) if steps else "epoch"
        return recipe.but(training__evaluate=every)

    def run(self, model: Source, data: Source) -> Tuning:
        """Run every trial that is not finished; an interrupted one is resumed.

        Raises `RunStopped` after a signal.
        """
        study = self.study(self.trial_recipe(1.0).digest(model, data))
        for rate in self.rates():
            if rate not in finished_trials(study):
                self.run_trial(study, rate, model, data)
        return self.result(study)

    def study(self, digest: str) -> "optuna.Study":
        """The Optuna study of this variant, stored in a journal file."""
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = str(self.root / "optuna.journal")
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(
                JournalFileBackend(path, JournalFileOpenLock(path))
            ),
            study_name=f"{self.recipe.name}-{digest[:8]}",
            pruner=choose_pruner(self.metric, self.rows["validation"]),
            direction="maximize" if gain(self.metric, 1.0) > 0 else "minimize",
            load_if_exists=True,
        )

    def run_trial(self, study: "optuna.Study", rate: float, model: Source, data: Source) -> None:
        """Run one trial, from its last checkpoint if there is one, and add it to the study."""
        import optuna

        recipe = self.trial_recipe(rate)
        folder = RunDir.of(self.root / "trials", recipe, model, data)
        folder.claim(recipe.digest(model, data))
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(rate, rate)})

        def should_prune(step: int, score: float | None) -> bool:
            trial.report(math.nan if score is None else score, step)
            return trial.should_prune()

        for line in folder.logged():  # of an interrupted trial
            if "eval_score" in line:
                should_prune(line["step"], line["eval_score"])
        try:
            world = World.enter(recipe.training)
            run = TrialPipeline(recipe, model, data, folder, world)
            run.should_prune = should_prune
            record = run.run()
        except (RunStopped, DiskError):
            raise
        except RunError as error:
            trial.set_user_attr("reason", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            say(None, f"learning rate {rate:g}: {error}")
        else:
            trial.set_user_attr("steps", record.steps)
            pruned = trial.should_prune()
            best = record.validation.get("score")
            trial.set_user_attr("score", best)
            trial.set_user_attr("loss", record.validation.get("loss"))
            trial.set_user_attr("undefined", best is None and not pruned)
            state = optuna.trial.TrialState.PRUNED if pruned or best is None else None
            study.tell(trial, None if state else best, state)
        finally:
            folder.release()
        shutil.rmtree(folder.path, ignore_errors=True)

    def result(self, study: "optuna.Study") -> Tuning:
        """The study's trials and the best learning rate; the default if all failed or tie with it.

        If no trial has a defined score, the losses are compared instead.
        """
        import optuna

        states = optuna.trial.TrialState
        named = {states.COMPLETE: "finished", states.PRUNED: "pruned", states.FAIL: "failed"}
        trials, default = finished_trials(study), self.recipe.strategy.default_lr
        results = [trial.user_attrs for trial in trials.values()]
        scored = any(result.get("score") is not None for result in results)
        by_loss = not scored and any(result.get("loss") is not None for result in results)
        metric, key = ("loss", "loss") if by_loss else (self.metric, "score")
        found = [
            Trial(
                lr=rate,
                score=trial.user_attrs.get(key),
                step=trial.user_attrs.get("steps", 0),
                status="finished" if trial.user_attrs.get("undefined") else named[trial.state],
                default=rate == default,
            )
            for rate, trial in trials.items()
        ]
        finished = [
            (gain(metric, t.score), t.default, t.lr)
            for t in found
            if t.status == "finished" and t.score is not None
        ]
        best = max(finished, default=None)
        return Tuning(
            metric=metric,
            rows=self.budget.rows or self.rows["train"],
            trials=found,
            chosen=best[2] if best else default,
        )


def finished_trials(study: "optuna.Study") -> "dict[float, optuna.trial.FrozenTrial]":
    """The study's finished trials by learning rate."""
    return {
        trial.params["lr"]: trial
        for trial in study.trials
        if trial.state.is_finished() and "lr" in trial.params
    }


def choose_pruner(metric: str, rows: int) -> "optuna.pruners.BasePruner":
    """The pruner for a metric: none where the standard error of a score is unknown."""
    import optuna

    found = find_metric(metric)
    if found.is_continuous or found.best != 1.0:
        return optuna.pruners.NopPruner()
    return margin_pruner(rows)


def margin_pruner(rows: int) -> "optuna.pruners.BasePruner":
    """A pruner of trials far below the best finished one at the same step.

    Optuna's pruners stop any trial that is worse, however little; a low learning rate starts
    slowly, and small differences on a few hundred rows are chance.
    """
    import optuna

    class MarginPruner(optuna.pruners.BasePruner):
        def prune(self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> bool:
            step = trial.last_step
            if step is None:
                return False
            value = trial.intermediate_values[step]
            finished = finished_trials(study).values()
            others = [t.intermediate_values.get(step, math.nan) for t in finished]
            known = [other for other in others if not math.isnan(other)]
            if math.isnan(value) or not known or not rows:
                return False
            return value < max(known) - PRUNING_MARGIN * math.sqrt(2 * 0.25 / rows)

    return MarginPruner()
