"""`lora_tiny` in plain PyTorch: the loop to read, and the oracle for the one that peftkit uses.

`python tests/plain_loop.py > tests/golden/lora_tiny.json` writes the golden loss curve.
"""

import json
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, set_seed

from peftkit.config.recipe import Recipe
from peftkit.hub.resolve import find_model
from peftkit.loading.model import load_tokenizer
from peftkit.models.architectures import linear_layers
from peftkit.preprocessing.batching import Order
from peftkit.preprocessing.tokenization import encode


def losses(recipe: Recipe, folder: str, rows: Any) -> list[float]:
    """The loss of each optimizer step on encoded `rows`, from the base model in `folder`."""
    training, strategy = recipe.training, recipe.strategy
    set_seed(training.seed)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    config = {"r": strategy.r, "lora_alpha": strategy.alpha, "modules_to_save": ["classifier"]}
    model = get_peft_model(base, LoraConfig(**config, target_modules=linear_layers(base)))
    weights = [p for p in model.parameters() if p.requires_grad]
    decays = [{"params": [p for p in weights if p.ndim > 1], "weight_decay": training.weight_decay}]
    rest = {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([*decays, rest], lr=recipe.lr())
    order, found = Order(rows["length"][:], training.batch_size, training.seed, True), []
    steps = len(order) // training.batch_size * int(training.epochs)
    rising = int(training.warmup_ratio * steps)
    for epoch in range(int(training.epochs)):
        order.set_epoch(epoch)
        for batch in torch.tensor(list(order)).split(training.batch_size):
            ids = [torch.tensor(rows[i]["input_ids"]) for i in batch.tolist()]
            seen = pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
            padded = pad_sequence(ids, batch_first=True)
            logits = model(input_ids=padded, attention_mask=seen).logits
            loss = cross_entropy(logits, torch.tensor([rows[i]["labels"] for i in batch.tolist()]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, training.max_grad_norm)
            step = len(found)
            rate = (
                (steps - step) / (steps - rising) if step >= rising else (step + 1) / (rising + 1)
            )
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr() * rate
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
    return found


def golden_recipe() -> Recipe:
    """`lora_tiny` in the precision that all processors have."""
    return Recipe.load("lora_tiny", "training.precision=fp32", "training.threads=1")


def inputs(recipe: Recipe) -> tuple[str, Any]:
    """The base model's folder and the encoded rows to train on."""
    model = find_model(recipe.model)
    splits = recipe.data.load(recipe.data.resolve(), recipe.task.roles)
    names = recipe.task.label_names(splits)
    examples = encode(recipe, splits, load_tokenizer(model.location), model, names)
    return model.location, examples["train"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(losses(golden_recipe(), *inputs(golden_recipe())), indent=1))
