"""Tuning: the same number of learning rates for each strategy, chosen on the validation split."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit.comparison.settings import Budget
from peftkit.config.recipe import Recipe
from peftkit.errors import DiskError, RunError, RunStopped
from peftkit.hub.source import Source
from peftkit.metrics.registry import PERCENT, SMOOTH, gain, plain_name
from peftkit.planning.plan import planned_steps
from peftkit.records.record import RunRecord, Trial, Tuning
from peftkit.records.run_dir import RunDir
from peftkit.runs.pipeline import Attempt, RunInputs
from peftkit.runtime.distributed import World, say
from peftkit.training.trainer import Outcome

if TYPE_CHECKING:
    import optuna

EVALUATIONS = 4
"""Of a trial: after each but the last it may be given up."""
HOPELESS = 2.0
"""Standard errors of the difference of two shares, on the validation rows: a trial further below
the best of those before it is given up. Of scores that are no shares of hits (perplexity, RMSE, a
correlation) no such error is known beforehand, and every trial is finished."""


class RateTrial(Attempt):
    """A run that only the validation split scores: what it trained is thrown away."""

    def _conclude(self, material: RunInputs, outcome: Outcome) -> RunRecord:
        return RunRecord(
            **self._known(material),
            status="finished",
            validation=outcome.best,
            steps=outcome.steps,
        )


@dataclass(frozen=True)
class Search:
    """The search for one strategy's learning rate."""

    recipe: Recipe
    budget: Budget
    rows: dict[str, int]
    """The runs' own, by split: the trials are scored on the same validation rows."""
    root: Path
    """The comparison's folder, which has Optuna's journal; trials run below it."""

    @property
    def metric(self) -> str:
        """The score on the validation split that rates are chosen by."""
        return self.recipe.task.chosen_by

    def rates(self) -> list[float]:
        """The rates to try, the default first."""
        default, powers = self.recipe.strategy.default_lr, [0]
        for power in range(1, self.budget.trials):
            powers += [power, -power]
        return [
            float(f"{default * self.budget.factor**p:.2g}") if p else default
            for p in powers[: self.budget.trials]
        ]

    def trial_recipe(self, rate: float) -> Recipe:
        """The recipe of one trial: the runs' own, on fewer rows, with a seed of its own."""
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
        steps = planned_steps(recipe, self.budget.rows or self.rows["train"])
        every = max(1, math.ceil(steps / EVALUATIONS)) if steps else "epoch"
        return recipe.but(training__evaluate=every)

    def run(self, model: Source, data: Source) -> Tuning:
        """Try every rate that has not been tried; what was interrupted goes on.

        Raises `RunStopped` after a signal.
        """
        study = self.study(self.trial_recipe(1.0).digest(model, data))
        for rate in self.rates():
            if rate not in tried(study):
                self.attempt(study, rate, model, data)
        return self.tuning_of(study)

    def study(self, digest: str) -> "optuna.Study":
        """Optuna's study of this strategy, on the disk."""
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = str(self.root / "optuna.journal")
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(
                JournalFileBackend(path, JournalFileOpenLock(path))
            ),
            study_name=f"{self.recipe.name}-{digest[:8]}",
            pruner=pruner_of(self.metric, self.rows["validation"]),
            direction="maximize" if gain(self.metric, 1.0) > 0 else "minimize",
            load_if_exists=True,
        )

    def attempt(self, study: "optuna.Study", rate: float, model: Source, data: Source) -> None:
        """One trial, from its last checkpoint where it was interrupted; told to the study."""
        import optuna

        recipe = self.trial_recipe(rate)
        folder = RunDir.of(self.root / "trials", recipe, model, data)
        folder.claim(recipe.digest(model, data))
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(rate, rate)})

        def hopeless(step: int, score: float | None) -> bool:
            trial.report(math.nan if score is None else score, step)
            return trial.should_prune()

        for line in folder.logged():  # of an interrupted trial
            if "eval_score" in line:
                hopeless(line["step"], line["eval_score"])
        try:
            world = World.enter(recipe.training)
            run = RateTrial(recipe, model, data, folder, world)
            run.should_prune = hopeless
            record = run.make()
        except (RunStopped, DiskError):
            raise
        except RunError as error:
            trial.set_user_attr("reason", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            say(None, f"learning rate {rate:g}: {error}")
        else:
            trial.set_user_attr("steps", record.steps)
            given_up = trial.should_prune()
            best = record.validation.get("score")
            trial.set_user_attr("score", best)
            trial.set_user_attr("loss", record.validation.get("loss"))
            trial.set_user_attr("undefined", best is None and not given_up)
            state = optuna.trial.TrialState.PRUNED if given_up or best is None else None
            study.tell(trial, None if state else best, state)
        finally:
            folder.release()
        shutil.rmtree(folder.path, ignore_errors=True)

    def tuning_of(self, study: "optuna.Study") -> Tuning:
        """What the study found; the default where every trial failed, and among equals.

        Where no trial has a score that is defined, their losses decide, and are told.
        """
        import optuna

        states = optuna.trial.TrialState
        named = {states.COMPLETE: "finished", states.PRUNED: "pruned", states.FAIL: "failed"}
        trials, default = tried(study), self.recipe.strategy.default_lr
        told = [trial.user_attrs for trial in trials.values()]
        scored = any(said.get("score") is not None for said in told)
        by_loss = not scored and any(said.get("loss") is not None for said in told)
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


def tried(study: "optuna.Study") -> "dict[float, optuna.trial.FrozenTrial]":
    """The study's trials by rate; an interrupted one has no reason to have failed."""
    return {
        trial.params["lr"]: trial
        for trial in study.trials
        if trial.state.is_finished() and "lr" in trial.params
    }


def pruner_of(metric: str, rows: int) -> "optuna.pruners.BasePruner":
    """What gives hopeless trials up, where it can be known that they are."""
    import optuna

    if plain_name(metric) in SMOOTH | PERCENT:
        return optuna.pruners.NopPruner()
    return hopeless_pruner(rows)


def hopeless_pruner(rows: int) -> "optuna.pruners.BasePruner":
    """Gives a trial up that is far below the best of the finished ones at the same step.

    Optuna's own pruners give up whatever is worse, by however little; a low rate starts slowly, and
    a few hundred rows tell small differences by luck.
    """
    import optuna

    class Hopeless(optuna.pruners.BasePruner):
        def prune(self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> bool:
            step = trial.last_step
            if step is None:
                return False
            value = trial.intermediate_values[step]
            finished = tried(study).values()
            others = [t.intermediate_values.get(step, math.nan) for t in finished]
            known = [other for other in others if not math.isnan(other)]
            if math.isnan(value) or not known or not rows:
                return False
            return value < max(known) - HOPELESS * math.sqrt(2 * 0.25 / rows)

    return Hopeless()
