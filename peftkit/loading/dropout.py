"""Dropout: the recipe's rate, or the architecture's own, in a model's configuration."""

from transformers import PretrainedConfig

from peftkit.config.recipe import Recipe
from peftkit.errors import Fault, RecipeError


def set_dropout(config: PretrainedConfig, recipe: Recipe) -> None:
    """Set every dropout rate of `config` to the recipe's; auto keeps those of a base that is
    trained, and sets 0 for a frozen one.

    LayerDrop (of M2M-100) is disabled if the rate is 0. Raises `RecipeError` if the architecture
    has no dropout.
    """
    rate = recipe.training.dropout
    if rate == "auto":
        if recipe.strategy.trains_base:
            return
        rate = 0.0
    keys = [
        key
        for key, value in config.to_dict().items()
        if ("dropout" in key or key.endswith("_pdrop")) and type(value) in (int, float)
    ]
    if rate and not keys:
        what = f"the architecture {config.model_type!r} has no dropout (got {rate}) - use 0 or auto"
        fault = Fault("training.dropout", what)
        raise RecipeError(f"recipe {recipe.name!r} does not fit its model:", [fault])
    for key in keys:
        setattr(config, key, rate)
    for key in config.to_dict():
        if key.endswith("layerdrop") and not rate:
            setattr(config, key, 0.0)
