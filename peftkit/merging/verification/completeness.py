"""Completeness: whether a checkpoint has the tensors of the class that its configuration names.

`python -m peftkit.merging.verification.completeness` reads a configuration and shapes, as JSON, and
prints what transformers would say of them; no weight is read.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from peftkit.errors import RunError
from peftkit.merging.outputs import MergePlan
from peftkit.registry import Settings
from peftkit.runtime.distributed import subprocess_environment

LISTED = 5
"""Names that an error lists."""


class Loaded(Settings):
    """What transformers says when it opens a checkpoint."""

    model: str | None
    """The class; None where the configuration names none that transformers has."""
    missing: list[str] = Field(default_factory=list)
    """Tensors of the class that are not there, or have another shape."""
    unexpected: list[str] = Field(default_factory=list)
    """Tensors that nothing takes."""


def opens_as(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Loaded:
    """What transformers says of tensors with these names and shapes, opened on the meta device by
    the class that `config` names."""
    import torch
    import transformers

    from peftkit.loading.model import quiet_transformers

    found = getattr(transformers, str(config["architectures"][0]), None)
    if found is None:
        return Loaded(model=None)
    with quiet_transformers():
        settings = found.config_class.from_dict(dict(config))
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        _, loading_info = found.from_pretrained(
            None,
            config=settings,
            state_dict=tensors,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    return loaded(found.__name__, loading_info)


def loaded(model: str, loading_info: Mapping[str, Any]) -> Loaded:
    """transformers' `output_loading_info` of a `model`."""
    absent = [
        *loading_info["missing_keys"],
        *(name for name, *_ in loading_info.get("mismatched_keys", ())),
    ]
    return Loaded(
        model=model, missing=sorted(absent), unexpected=sorted(loading_info["unexpected_keys"])
    )


@contextmanager
def check_while_writing(
    config: Mapping[str, Any], plan: MergePlan, without: Collection[str] = ()
) -> Iterator[list[Loaded]]:
    """While the body writes what is `plan`, see how it opens in its class: the list holds that
    afterwards. In another process, unless this one has transformers at hand; a merge needs it not.
    `without`: tensors of the class that may be missing.

    Raises `RunError` for tensors that are missing, or that the adapter brought and nothing takes.
    """
    given = {"config": dict(config), "shapes": {o.name: o.shape for o in plan.outputs}}
    found: list[Loaded] = []
    if not config.get("architectures"):
        found.append(Loaded(model=None))
        yield found
    elif "transformers" in sys.modules:
        found.append(opens_as(**given))
        check(found[0], plan, without)
        yield found
    else:
        with started_process(given) as process:
            yield found
            output, wrong = process.communicate()
        if process.returncode:
            raise RunError(f"how the merged model opens is not known: {wrong.strip()[-2000:]}")
        found.append(Loaded.model_validate_json(output.splitlines()[-1]))
        check(found[0], plan, without)


@contextmanager
def started_process(given: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A process that was given the question; it is gone afterwards."""
    command = [sys.executable, "-m", "peftkit.merging.verification.completeness"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=subprocess_environment()
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(given))
            process.stdin.close()
            process.stdin = None  # or `communicate` would close it again
            yield process
        except BaseException:
            process.kill()
            raise


def check(found: Loaded, plan: MergePlan, without: Collection[str]) -> None:
    """Refuse what lacks tensors of its class, or has the adapter's where nothing takes them."""
    own = {output.name for output in plan.outputs if not output.is_touched}
    surplus = [name for name in found.unexpected if name not in own]
    absent = [name for name in found.missing if name not in without]
    if absent:
        raise RunError(
            f"the merged checkpoint lacks {', '.join(absent[:LISTED])}, which "
            f"{found.model} has - name the base that the adapter was trained on"
        )
    if surplus:
        raise RunError(
            f"the merged checkpoint has {', '.join(surplus[:LISTED])} of the adapter's, which "
            f"{found.model} does not have - name the base that the adapter was trained on"
        )


if __name__ == "__main__":
    print(opens_as(**json.loads(sys.stdin.read())).model_dump_json())
