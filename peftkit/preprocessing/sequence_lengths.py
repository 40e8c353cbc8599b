"""Checks that texts and generated tokens fit the positions of a model."""

from typing import Any

from peftkit.config.recipe import Recipe
from peftkit.errors import Fault
from peftkit.models.architectures import first_position


def length_faults(recipe: Recipe, config: Any) -> list[Fault]:
    """What the recipe asks for and the model of this `config` has no positions for."""
    return [*texts_too_long(recipe, config), *answers_too_long(recipe, config)]


def texts_too_long(recipe: Recipe, config: Any) -> list[Fault]:
    """Texts, with what the strategy puts before them."""
    positions, ahead = positions_of(config, "encoder"), recipe.strategy.num_prompt_tokens
    if positions is None or recipe.data.max_length + ahead <= positions:
        return []
    what = f"the model reads at most {positions} tokens"
    if ahead >= positions:
        return [
            Fault("strategy.num_virtual_tokens", f"{what} (got {ahead} virtual ones) - use fewer")
        ]
    what += f", of which the strategy takes {ahead}" if ahead else ""
    fix = f"use data.max_length={positions - ahead}" + (" or fewer virtual tokens" if ahead else "")
    return [Fault("data.max_length", f"{what} (got {recipe.data.max_length}) - {fix}")]


def answers_too_long(recipe: Recipe, config: Any) -> list[Fault]:
    """Targets and generated texts, with the question where one sequence holds both."""
    task = recipe.task
    if task.text_generator is None:
        return []
    asked = {
        "task.target_length": getattr(task, "target_length", None),
        "task.generate.max_new_tokens": task.generation.max_new_tokens if task.generation else None,
    }
    if config.is_encoder_decoder:
        room, says = positions_of(config, "decoder"), "the model's decoder says at most {} tokens"
        limits = dict.fromkeys(asked, room)
    else:
        room, says = room_for_answers(recipe, config), "leaves room for no question: {} tokens do"
        limits = {
            "task.target_length": recipe.data.max_length - 1,
            "task.generate.max_new_tokens": room,
        }
    return [
        Fault(name, f"{says.format(limits[name])} (got {size}) - use {limits[name]} or less")
        for name, size in asked.items()
        if size is not None and limits[name] is not None and size > (limits[name] or 0)
    ]


def room_for_answers(recipe: Recipe, config: Any) -> int | None:
    """Tokens that a causal model can say behind one token of a question; None: any number."""
    positions = positions_of(config, "decoder")
    return None if positions is None else positions - recipe.strategy.num_prompt_tokens - 1


def room_for_questions(recipe: Recipe, config: Any, max_new_tokens: int) -> int | None:
    """Tokens that a causal model can read before so many more; None: any number."""
    room = room_for_answers(recipe, config)
    return None if room is None else room + 1 - max_new_tokens


def positions_of(config: Any, part: str) -> int | None:
    """How many tokens in a row the model's encoder or decoder has positions for; None: any number,
    or as many as `data.max_length` says."""
    own = getattr(config, f"max_{part}_position_embeddings", None)  # LED's
    inner = config.get_text_config(**{part: True}) if config.is_encoder_decoder else config
    positions = own or getattr(inner, "max_position_embeddings", None)
    return int(positions) - first_position(config) if positions else None
