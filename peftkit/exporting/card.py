"""The card of an exported folder: what it is and needs, code that runs, and who can serve it."""

import importlib.metadata
from collections.abc import Mapping, Sequence

from peftkit.config.recipe import Recipe
from peftkit.records.record import RunRecord
from peftkit.runs.model_card import description

NEEDED = ("torch", "transformers", "safetensors")
"""What `load.py` imports beside the standard library; huggingface_hub comes with transformers."""
LOADING = """
## How to load it

`load.py` is plain transformers and torch code; it needs neither peftkit nor peft. {opened}

```
pip install {requirements}
python load.py {arguments}
```

In Python, from within this folder:

```python
{code}
```
{prompts}
transformers promises no stability for all that `load.py` hooks into: the versions above are those
that it was proven with (`export.json`).
{base}
## Serving

{serving}
"""
LABELING = """from load import load, logits_of

model, tokenizer = load({given})
print(logits_of(model, tokenizer, {texts}).softmax(-1))"""
SAYING = """from generate import generate
from load import load

model, tokenizer = load({given})
print(generate(model, tokenizer, {texts}))"""
PROMPTED = {
    "conversation": "A text is a question; a conversation is a list of "
    '`{"role": ..., "content": ...}`. Both are written by the chat template in here.',
    "question": "A text is asked of the model as it was in training, by the chat template in here.",
    "source": "A text is what the encoder reads.",
    "opening": "A text is gone on from.",
}
"""What a text is to a language model, by the kind of its prompts."""
ENDS = """
{kind} Answers end as the run's do: `generation_config.json` names the tokens that end one, and
`loading.json` the texts that do. What is spelled as a special token in a text is text.
"""
SERVED_AS_CODE = """The trained parts ({parts}) stand beside the base's weights, and the model's
class has no place for them. Inference servers load a model by its class: vLLM and TGI take LoRA
adapters, or merged checkpoints, not these. Serve `load.py` behind a web framework of yours."""
SERVED_MARKED = """The head reads the model at the marked parts of a text ({markers}), which no
class of transformers does, so no server that loads a model by its class can say the same. Serve
`load.py` behind a web framework of yours."""
SERVED_ADDED = """The vocabulary has tokens more than the base's ({markers}), which no merge writes.
Serve `load.py` behind a web framework of yours."""
SERVED_MERGED = """What was trained lies in the base's weights, and {merge} gives an ordinary
checkpoint of them, which every server that knows the model's class can load."""
REFERRED = """
## The base

The base's weights are not in here. They are those of {name} ({identity}); `load.py` checks each
file by its sha256 and refuses others. {where}
"""


def needed() -> dict[str, str]:
    """The versions of these here, without what a local build is called."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in NEEDED}


def mergeable(recipe: Recipe) -> bool:
    """Whether `peftkit merge` gives an ordinary checkpoint of the recipe's runs."""
    return recipe.strategy.mergeable and not recipe.task.markers()


def card(
    record: RunRecord,
    recipe: Recipe,
    weights: Mapping[str, object],
    kinds: Sequence[str],
    prompts: Mapping[str, object] | None = None,
) -> str:
    """The model card, in Markdown; `weights` is where the base's weights are, and `prompts` how a
    language model is asked."""
    one, text = '["a text", "another one"]', '"a text"'
    if recipe.task.pools_markers:
        text = '"a {}text{} with {}marks{}"'.format(*recipe.task.markers()[:4])
        one = f"[{text}]"
    pairs = recipe.data.text_pair is not None
    on_hub = bool(weights.get("on_hub", True))
    given, texts = "" if on_hub else 'base="FOLDER_OF_THE_BASE"', f"{one}, {one}" if pairs else one
    words = LOADING.format(
        opened=opened(recipe),
        requirements=" ".join(f"{name}=={version}" for name, version in needed().items()),
        arguments=('"a text" "its pair"' if pairs else text)
        + ("" if on_hub else " --base FOLDER_OF_THE_BASE"),
        code=(LABELING if prompts is None else SAYING).format(given=given, texts=texts),
        prompts=ENDS.format(kind=PROMPTED[str(prompts["kind"])]) if prompts is not None else "",
        base=referred(record, weights) if weights["held"] == "referred" else "",
        serving=serving(record, recipe, kinds),
    )
    return description(record, recipe, "transformers") + words


def opened(recipe: Recipe) -> str:
    """What the weights in `base` are without `load.py`."""
    if not mergeable(recipe):
        return "The weights in `base` alone lack what was trained."
    if recipe.task.trains_head:
        return "The weights in `base` alone lack the trained head."
    return "The weights in `base` are the trained model's."


def referred(record: RunRecord, weights: Mapping[str, object]) -> str:
    """What the reader must know of a base that is elsewhere."""
    where = "It is fetched from the hub, or taken from `base=FOLDER`."
    if not weights["on_hub"]:
        where = "Name the folder that holds it with `base=`, or `--base`."
    model = record.model
    return REFERRED.format(name=model.used, identity=model.identity, where=where)


def serving(record: RunRecord, recipe: Recipe, kinds: Sequence[str]) -> str:
    """Which servers can hold it."""
    if mergeable(recipe):
        return SERVED_MERGED.format(merge=f"`peftkit merge` of the run {record.folder_name}")
    if recipe.task.pools_markers:
        return SERVED_MARKED.format(markers=", ".join(recipe.task.markers()))
    if not kinds:
        return SERVED_ADDED.format(markers=", ".join(recipe.task.markers()))
    return SERVED_AS_CODE.format(parts=", ".join(kinds))
