"""Folds: differences over overlapping training sets, with a variance that allows for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from peftkit.errors import RunError
from peftkit.reporting.analysis.cross_validation import CrossValidation
from peftkit.reporting.analysis.differences import differences
from peftkit.reporting.report import Report, report
from support.run_processes import Zygote

ROWS, FOLDS = 60, 5


def ties(learner: Any, features: int, shift: float, times: int = 300) -> np.ndarray:
    """Differences (simulations, folds) in accuracy of one learner on two halves of the features,
    which tell as much: on average over data sets the truth is 0."""
    from sklearn.model_selection import StratifiedKFold

    rng = np.random.default_rng(0)
    labels = np.arange(ROWS) % 2
    found = np.empty((times, FOLDS))
    for trial in range(times):
        data = rng.standard_normal((ROWS, 2 * features)) + shift * labels[:, None]
        dealer = StratifiedKFold(FOLDS, shuffle=True, random_state=trial)
        for fold, (learned, scored) in enumerate(dealer.split(data, labels)):
            hits = []
            for half in (data[:, :features], data[:, features:]):
                learner.fit(half[learned], 2 * labels[learned] - 1)
                said = learner.predict(half[scored]) > 0
                hits.append((said == labels[scored]).mean())
            found[trial, fold] = hits[0] - hits[1]
    return found


def learners() -> dict[str, tuple[Any, int, float]]:
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsClassifier

    return {
        "ridge": (Ridge(alpha=0.01, solver="cholesky"), 40, 0.3),
        "neighbor": (KNeighborsClassifier(1, algorithm="brute"), 5, 0.7),
    }


@pytest.mark.parametrize("name", ["ridge", "neighbor"])
def test_ties_are_told_apart_in_about_5_of_100_cross_validations_and_by_students_t_in_more(
    name: str,
) -> None:
    found = ties(*learners()[name])
    spread = CrossValidation(FOLDS, 1 / (FOLDS - 1), ROWS).of(found)
    wrong = float(np.mean(spread.p_values() < 0.05))
    covered = float(np.mean(np.abs(spread.mean) <= spread.half_widths()))
    differs = found.std(axis=1) > 0
    naive = float((stats.ttest_1samp(found[differs], 0, axis=1).pvalue < 0.05).sum() / len(found))
    assert covered == pytest.approx(1 - wrong, abs=0.01)
    assert 0.01 <= wrong <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(found)), wrong
    assert naive > 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(found)) and naive > 2 * wrong, naive


def test_the_variance_is_nadeaus_and_bengios_and_the_p_value_students() -> None:
    values = np.array([0.10, 0.02, 0.07, 0.05, 0.01])
    spread = CrossValidation(5, 0.25, 10_000).of(values)
    variance = (1 / 5 + 0.25) * values.var(ddof=1)
    t = values.mean() / np.sqrt(variance)
    assert float(spread.p_values()) == pytest.approx(2 * stats.t.sf(t, 4), rel=1e-3)
    half = stats.t.ppf(0.975, 4) * np.sqrt(variance)
    assert float(spread.half_widths()) == pytest.approx(half, rel=1e-3)
    assert float(spread.minimum_detectable()) > half
    pairs = CrossValidation(5, 0.25, 10_000).of_pairs(np.stack([values, np.zeros(5)]))
    assert pairs.mean[0, 1] == -pairs.mean[1, 0] == pytest.approx(0.05)
    assert pairs.seed_variance[0, 1] == pytest.approx(variance)


def test_what_is_called_detectable_is_found_in_four_of_five_cases() -> None:
    rng = np.random.default_rng(1)
    folds, alike = 10, 1 / 10  # the correlation that the correction assumes
    shared = np.sqrt(alike) * rng.standard_normal((4000, 1))
    own = np.sqrt(1 - alike) * rng.standard_normal((4000, folds))
    noise = 0.02 * (shared + own)
    cross_validation = CrossValidation(folds, alike / (1 - alike), 100_000)
    # the variance that s^2 has on average
    known = cross_validation.of(np.tile([-1.0, 1.0], (1, 5)) * 0.02 * np.sqrt((1 - alike) * 0.9))
    true = float(known.minimum_detectable()[0])
    found = np.mean(cross_validation.of(noise + true).p_values() < 0.05)
    assert 0.77 <= found <= 0.83


def test_folds_that_agree_exactly_have_an_interval_still_and_one_fold_has_none() -> None:
    cross_validation = CrossValidation(5, 0.25, 100)
    equal = cross_validation.of(np.zeros(5))
    assert float(equal.half_widths()) > 0.03 and float(equal.p_values()) == pytest.approx(1)
    found = differences({"a": {0: 0.9, 1: 0.8}, "b": {0: 0.5, 4: 0.4}}, "a", cross_validation)
    assert not found.to_reference and not found.pairs
    more = {"a": {0: 0.9, 1: 0.8, 2: 0.9}, "b": {1: 0.5, 2: 0.4, 4: 0.1}, "c": {3: 0.5}}
    compared = differences(more, "a", cross_validation)
    assert compared.to_reference["b"].seeds == [1, 2] and "c" not in compared.intervals
    assert compared.to_reference["b"].value == pytest.approx(-0.4)


def test_real_runs_that_differ_in_their_fold_alone_are_one_strategy(
    zygote: Zygote, tmp_path: Path
) -> None:
    for strategy in ("full", "frozen"):
        for fold in range(3):
            settings = [f"strategy={strategy}", "data.folds=3", f"data.fold={fold}"]
            ended = zygote.run(tmp_path, *settings, "training.epochs=1")
            assert ended.code == 0, ended.said
    found = report(tmp_path / "runs")
    assert found.folds == 3 and found.rows == 120
    rows = {each.label: each for each in found.strategies}
    assert rows["full"].seeds == rows["frozen"].seeds == [0, 1, 2]
    compared = rows["frozen"].difference
    assert compared is not None and compared.seeds == [0, 1, 2] and compared.rows == 120
    differs = [rows["frozen"].scores[i] - rows["full"].scores[i] for i in range(3)]
    assert compared.value == pytest.approx(np.mean(differs))
    said = " ".join(found.verdict)
    assert (
        "3 of 3 folds" in said and "Training sets of folds overlap" in said and "seed" not in said
    )
    page = str(found)
    assert "Nadeau and Bengio 2003" in page and "| folds |" in page and "| seeds |" not in page
    assert Report.model_validate_json(found.model_dump_json()) == found
    whole = zygote.run(tmp_path, "training.epochs=1")
    assert whole.code == 0, whole.said
    with pytest.raises(RunError, match="these runs are not comparable"):
        report(tmp_path / "runs")
    with pytest.raises(RunError, match=r"numbers of folds differ \(.*none in "):
        report(tmp_path / "runs", allow_mixed=True)
