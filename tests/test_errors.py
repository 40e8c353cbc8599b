"""Errors have a place, a fault and a fix, can be pickled, and suggest the nearest name."""

import pickle

import pytest

from peftkit.errors import (
    DataError,
    Fault,
    PeftkitError,
    RecipeError,
    RunError,
    RunStopped,
    nearest,
)


def test_an_error_prints_its_message_and_a_fault_per_line() -> None:
    error = RecipeError(
        "it cannot run:", [Fault("a.b (here)", "is wrong - fix it"), Fault("c", "d")]
    )
    assert str(error) == "it cannot run:\n  a.b (here): is wrong - fix it\n  c: d"


@pytest.mark.parametrize("kind", [PeftkitError, RecipeError, DataError, RunError])
def test_every_error_survives_pickling_with_its_faults(kind: type[PeftkitError]) -> None:
    error = kind("wrong:", [Fault("here", "this")])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) and again.faults == error.faults


def test_a_stopped_run_survives_pickling_with_its_signal() -> None:
    again = pickle.loads(pickle.dumps(RunStopped("stopped at step 3", 15)))
    assert (str(again), again.signal_number) == ("stopped at step 3", 15)


def test_each_error_is_also_a_standard_one() -> None:
    assert issubclass(RecipeError, ValueError) and issubclass(DataError, ValueError)
    assert issubclass(RunError, RuntimeError) and issubclass(RunStopped, RunError)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lorra", "did you mean 'lora'?"),
        ("LoRA", "did you mean 'lora'?"),
        ("xyz", "choose from full, lora"),
    ],
)
def test_the_nearest_choice_is_named_or_all_where_none_is_near(word: str, hint: str) -> None:
    assert nearest(word, ["lora", "full"]) == hint


def test_without_any_choice_it_says_so() -> None:
    assert nearest("lora", []) == "there are none to choose from"
