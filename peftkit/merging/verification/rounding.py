"""Rounding: how far it alone moves what a model says, seen by rounding its weights otherwise."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from peftkit.merging.tensor_names import match_names

BITS = {"BF16": 8, "F16": 11}
"""The bits of a number's significand, the leading one counted."""
EXACT = 24
TYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
DRAWS = 4
"""How often the weights are rounded otherwise."""


def moved_by_rounding(
    model: nn.Module, types: Mapping[str, str], answers: Callable[[nn.Module], Tensor]
) -> Iterator[Tensor]:
    """What `answers` says of the model, in fp32, each time that its weights are rounded otherwise.

    `types`: of the checkpoint's tensors that were computed, what they were rounded to. What a
    weight was lies within half a step of what it is, anywhere; one that is drawn there instead
    moves the answers as far as rounding did. Nothing is drawn for fp32.
    """
    shaken = [(p, t) for p, t in rounded(model, types) if t in BITS]
    held = [parameter.to(TYPES[dtype]) for parameter, dtype in shaken]
    generator = torch.Generator()
    for draw in range(DRAWS if shaken else 0):
        generator.manual_seed(draw)
        for parameter, dtype in shaken:
            shake(parameter, BITS[dtype], generator)
        yield answers(model)
        for (parameter, _), was in zip(shaken, held, strict=True):
            parameter.copy_(was)


def rounded(model: nn.Module, types: Mapping[str, str]) -> list[tuple[Tensor, str]]:
    """The model's parameters that were computed, and what they were rounded to.

    Of a class that puts tensors together while it loads them: all, as the least exact type.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = match_names(list(parameters), types)
    places = {name: names.in_checkpoint(name) for name in parameters}
    found = {place: parameters[name] for name, place in places.items() if place is not None}
    if found.keys() == types.keys():
        return [(parameter, types[place]) for place, parameter in found.items()]
    coarsest = min(types.values(), key=lambda dtype: BITS.get(dtype, EXACT))
    return [(parameter, coarsest) for parameter in model.parameters()]


def shake(parameter: Tensor, bits: int, generator: torch.Generator) -> None:
    """Move each number within half of its step, as far as it may have been rounded."""
    _, exponents = torch.frexp(parameter)
    steps = torch.ldexp((parameter != 0).to(parameter.dtype), exponents - bits)
    sampled = torch.rand(parameter.shape, generator=generator) - 0.5
    parameter.add_(sampled.mul_(steps))
