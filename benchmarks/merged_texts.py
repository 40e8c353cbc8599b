"""Whether a merged language model says what its run says, by plain transformers.

    python benchmarks/merged_texts.py ../shared/data/gsm8k [--only llama] [--keep]

SmolLM2-135M on GSM8K (a folder with its parquet files), and an untied Llama of 50 million weights,
a Marian and a T5 of 20 million, all made up, on sentences of a made-up language. Each is trained a
few steps by a LoRA, and by one on 4 bits, and merged. A fresh process without peftkit opens the
merged folder by the classes that anybody uses, and answers 50 prompts from their texts, greedily.
Its texts and their ends are held against the run's own, as are chat template and ends in the folder
against those of the training. `--keep` writes `measurements/merged_texts.json`.
"""

import argparse
import importlib.metadata
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TO = Path(__file__).parent / "measurements" / "merged_texts.json"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
VARIANTS = {"lora": "none", "lora on 4 bits": "4bit"}
SYLLABLES = ["ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "ta", "vo"]
TURNS = ("<|turn|>", "<|over|>")
"""What opens a turn and what ends it: neither is the end of a text."""
TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|over|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""EvalSplit by the recipe: the tokenizer has none."""
PLAIN = """
import json, logging, sys, warnings
sys.modules["peftkit"] = sys.modules["peft"] = None  # from here on neither can be imported
given = json.loads(sys.stdin.read())
import torch, transformers
torch.set_num_threads(given["threads"])
said = []
class Noting(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
for name in ("", "transformers"):
    logging.getLogger(name).addHandler(Noting(logging.WARNING))
warnings.showwarning = lambda message, *_: said.append(str(message))
folder = given["folder"]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
loader = getattr(transformers, given["loader"])
model, found = loader.from_pretrained(folder, output_loading_info=True)
apart = model.config.is_encoder_decoder
ends = model.generation_config.eos_token_id
ends = [ends] if isinstance(ends, int) else list(ends or [])
def prompt_of(text):
    if apart:
        return tokenizer(text)["input_ids"]
    asked = [{"role": "user", "content": text}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]
answers = []
with torch.no_grad():
    for text, ours, likely in zip(given["texts"], given["said"], given["likely"]):
        prompt = prompt_of(text)
        ids = torch.tensor([prompt])
        most = {"do_sample": False, "max_new_tokens": given["most"]}
        new = model.generate(ids, attention_mask=torch.ones_like(ids), **most)[0].tolist()
        new = new[1 if apart else len(prompt):]
        if apart:
            start = model.generation_config.decoder_start_token_id
            rows, first = {"input_ids": ids, "decoder_input_ids": [[start, *ours[:-1]]]}, 0
        else:
            rows, first = {"input_ids": [[*prompt, *ours[:-1]]]}, len(prompt) - 1
        logits = model(**{key: torch.as_tensor(value) for key, value in rows.items()}).logits
        logits = logits[0, first:].float().gather(1, torch.tensor(likely)).flatten().tolist()
        text = tokenizer.decode(new, skip_special_tokens=True)
        ended = new[-1] in ends
        answers.append({"tokens": new, "text": text, "ended": ended, "logits": logits})
piped = None
if not apart:  # transformers 5 has no pipeline for the others
    asked = [[{"role": "user", "content": text}] for text in given["texts"][:2]]
    pipe = transformers.pipeline("text-generation", model=folder)
    made = pipe(asked, do_sample=False, max_new_tokens=given["most"])
    piped = [each[0]["generated_text"][-1]["content"] for each in made]
missed = {key: sorted(map(str, found[key])) for key in ("missing_keys", "unexpected_keys")}
kept = ("missing", "newly initialized", "unexpected", "not used", "not initialized")
print(json.dumps({
    "answers": answers, "piped": piped, "class": type(model).__name__, **missed, "ends": ends,
    "warnings": [each for each in said if any(word in each.lower() for word in kept)],
    "template": tokenizer.chat_template, "pad": tokenizer.pad_token_id,
}))
"""
"""What somebody without peftkit does with the folder."""


@dataclass(frozen=True)
class Size:
    """How large the made-up models are, and how long they learn their language."""

    width: int = 512
    blocks: int = 8
    tokens: int = 18000
    """Rows of the Llama's embeddings, more than its tokenizer has."""
    steps: int = 160
    words: int = 24
    """Of each of the two languages."""
    prompts: int = 50
    most: int = 64
    """Tokens of an answer."""


WHOLE = Size()


@dataclass(frozen=True)
class Measured:
    """The results of one variant of one model."""

    model: str
    variant: str
    weights: int
    prompts: int
    equal_texts: int
    """To the letter, with the same ends."""
    near_ties: int
    """Texts that part where two tokens are as probable but for rounding."""
    different: list[int]
    ended: int
    """The run's answers that a token ends, and not their greatest length."""
    distinct: int
    """How many different texts the run says."""
    largest_difference: float
    """Of the logits along the run's answers."""
    largest_logit: float
    opened_as: str
    clean: bool
    """Nothing missing or unexpected, and no warning of it."""
    pipeline: bool | None
    """Whether it says what the model says; null: there is none for such models."""
    as_trained: bool
    """Whether chat template, ends and padding token are those of the training."""
    seconds: float


def main() -> None:
    """Measure all models and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", type=Path, help="folder with GSM8K's parquet files")
    options.add_argument("--only", action="append", help="a model's first word, in small letters")
    options.add_argument("--keep", action="store_true", help="write the measurements")
    given = options.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            if given.only and name.split()[0].lower() not in given.only:
                continue
            found += measure(name, Path(folder), given.data, WHOLE)
            if given.keep:
                keep(found)
    print(table(found))


def keep(found: Sequence["Measured"]) -> None:
    """Write what was measured in the place of what was known of the same models."""
    known = json.loads(TO.read_text(encoding="utf-8"))["models"] if TO.is_file() else []
    rows = {(each["model"], each["variant"]): each for each in known}
    rows |= {(each.model, each.variant): asdict(each) for each in found}
    machine = f"{platform.machine()}, transformers {importlib.metadata.version('transformers')}"
    result = {"machine": machine, "models": list(rows.values())}
    TO.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(
    name: str, folder: Path, data: Path, size: Size, variants: Sequence[str] = tuple(VARIANTS)
) -> list[Measured]:
    """The results of each variant of one model."""
    base, settings = MODELS[name](folder / name.replace(" ", "-"), data, size)
    found = []
    for variant in variants:
        begun = time.perf_counter()
        here = folder / f"{name} {variant}".replace(" ", "-")
        run = train(base, settings, VARIANTS[variant], here)
        measured = compare_texts(name, variant, run, here / "merged", size, begun)
        print(table([measured]).splitlines()[-1], flush=True)
        found.append(measured)
    return found


def train(base: str, settings: Mapping[str, Any], quantize: str, folder: Path) -> Path:
    """The folder of a LoRA run of a few steps."""
    import peftkit
    from peftkit.config.composition import Composition
    from peftkit.config.recipe import Recipe

    composition = Composition("merged_texts", Recipe.load("lora_tiny", f"model={base}").settings())
    training = {"steps": 8, "batch_size": 4, "lr": 1e-3, "precision": "fp32", "proof": "run"}
    strategy = {"kind": "lora", "r": 8}
    chosen = {"training": training, "strategy": strategy, "quantize": quantize, **settings}
    for key, value in chosen.items():
        composition.set(key, value, "the benchmark")
    record = peftkit.train(Recipe.of(composition), folder / "runs")
    return folder / "runs" / record.folder_name


def compare_texts(
    name: str, variant: str, run: Path, merged: Path, size: Size, begun: float
) -> Measured:
    """Merge the run, and hold the merged folder's answers against the run's own."""
    import torch

    import peftkit
    from peftkit.exporting.answers import Answers
    from peftkit.inference.predictor import load_run
    from peftkit.merging.verification.greedy import Answer, compare
    from peftkit.merging.verification.proof import MARGIN
    from peftkit.merging.verification.verify import difference
    from peftkit.records.run_dir import RunDir

    peftkit.merge(run, merged)
    recipe, loaded, names = load_run(run)
    ours = Answers(RunDir(run), recipe, None, size.prompts, size.most)
    ours.query(recipe, loaded, names)
    requested = [last_text(each) for each in ours.inputs()]
    found = plainly(merged, recipe.task.auto_class(loaded.module.config), requested, ours, size)
    logits = torch.cat([torch.tensor(each.pop("logits")) for each in found["answers"]])
    apart = difference(torch.cat([each.flatten() for each in ours.logits]), logits)
    theirs = [Answer(**each) for each in found["answers"]]
    texts = compare(ours.answers, theirs, ours.tie(MARGIN * apart["largest"]))
    clean = not (found["missing_keys"] or found["unexpected_keys"] or found["warnings"])
    result = [each.text.strip() for each in theirs[:2]]
    piped = found["piped"] and [each.strip() for each in found["piped"]] == result
    return Measured(
        model=name,
        variant=variant,
        weights=loaded.parameters.base + loaded.parameters.head,
        prompts=texts.prompts,
        equal_texts=texts.equal,
        near_ties=texts.near_ties,
        different=texts.different,
        ended=texts.ended,
        distinct=len({each.text for each in ours.answers}),
        largest_difference=apart["largest"],
        largest_logit=apart["largest_logit"],
        opened_as=found["class"],
        clean=clean,
        pipeline=piped,
        as_trained=as_trained(recipe.task, loaded, found),
        seconds=time.perf_counter() - begun,
    )


def last_text(requested: Any) -> str:
    """What is asked, of a text or of a conversation with one question."""
    return requested if isinstance(requested, str) else str(requested["messages"][-1]["content"])


def as_trained(task: Any, loaded: Any, found: Mapping[str, Any]) -> bool:
    """Whether the folder has the chat template, the ends and the padding of the training."""
    from peftkit.evaluation.generation import find_end_ids

    tokenizer = loaded.tokenizer
    ends = find_end_ids(loaded, task.stop_ids(tokenizer))
    template = task.chat_template(tokenizer)
    same = template is None or template == found["template"]
    return same and sorted(found["ends"]) == ends and found["pad"] == tokenizer.pad_token_id


def plainly(
    folder: Path, loader: Any, texts: Sequence[str], ours: Any, size: Size
) -> dict[str, Any]:
    """What a process without peftkit finds in the folder, and has it say to the texts."""
    import torch

    given = {
        "folder": str(folder.resolve()),
        "loader": loader.__name__,
        "texts": texts,
        "said": [list(answer.tokens) for answer in ours.answers],
        "likely": [likely.tolist() for likely in ours.likely],
        "most": size.most,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    if done.returncode:
        raise SystemExit(f"{folder}: plain transformers failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def smollm2(folder: Path, data: Path, size: Size) -> tuple[str, dict[str, Any]]:
    """The published model, and recipe settings for GSM8K."""
    limit = {"train": 96, "validation": 8, "test": size.prompts}
    files = {"kind": "files", "path": str(data.resolve()), "max_length": 384, "limit": limit}
    generate = {"rows": 2, "max_new_tokens": size.most, "untrained_baseline": False}
    return SMOLLM2, {"data": files, "task": {"kind": "instruction_tuning", "generate": generate}}


def llama(folder: Path, data: Path, size: Size) -> tuple[str, dict[str, Any]]:
    """An untied Llama with the bytes' pairs, whose turns end in another token than its texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = lexicon_rows(size)
    tokenizer = byte_tokenizer(rows)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    config = LlamaConfig(
        vocab_size=max(size.tokens, len(tokenizer)),
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.blocks,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        **ids,
    )
    texts = [spoken(row) for row in rows["train"]]

    def batch_of(chosen: Sequence[int]) -> Any:
        batch = tokenizer([texts[i] for i in chosen], padding=True, return_tensors="pt")
        return {**batch, "labels": masked(batch["input_ids"], tokenizer.pad_token_id)}

    learn(LlamaForCausalLM, config, batch_of, len(texts), size, folder)
    tokenizer.save_pretrained(folder)
    task = {"kind": "instruction_tuning", "template": TEMPLATE, "generate": generating(size)}
    return str(folder), {"data": files_of(rows, folder, {}), "task": task}


def marian(folder: Path, data: Path, size: Size) -> tuple[str, dict[str, Any]]:
    """A Marian with its two sentencepiece models, and no fast tokenizer."""
    from transformers import AutoTokenizer, MarianConfig, MarianMTModel

    rows = lexicon_rows(size)
    folder.mkdir(parents=True)
    write_marian_tokenizer(rows, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = {f"{part}_layers": max(1, size.blocks * 3 // 8) for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 8 for part in ("encoder", "decoder")}
    inner = {f"{part}_ffn_dim": 4 * size.width for part in ("encoder", "decoder")}
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=size.width,
        max_position_embeddings=256,
        pad_token_id=pad,
        eos_token_id=end,
        forced_eos_token_id=end,
        decoder_start_token_id=pad,
        **parts, **heads, **inner,
    )  # fmt: skip
    learn(MarianMTModel, config, pairs_of(tokenizer, rows), len(rows["train"]), size, folder)
    return str(folder), rewriting(rows, folder, size)


def t5(folder: Path, data: Path, size: Size) -> tuple[str, dict[str, Any]]:
    """A T5 with a sentencepiece model."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    rows = lexicon_rows(size)
    folder.mkdir(parents=True)
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    (folder / "spiece.model").write_bytes(sentence_pieces(rows, "unigram", **ids))
    config = T5Config(
        vocab_size=1,
        d_model=size.width,
        d_kv=size.width // 8,
        d_ff=4 * size.width,
        num_layers=max(1, size.blocks * 3 // 8),
        num_heads=8,
        decoder_start_token_id=0,
    )
    named = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 256}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
    config.vocab_size = len(tokenizer)
    learn(
        T5ForConditionalGeneration,
        config,
        pairs_of(tokenizer, rows),
        len(rows["train"]),
        size,
        folder,
    )
    tokenizer.save_pretrained(folder)
    return str(folder), rewriting(rows, folder, size)


MODELS = {"SmolLM2-135M": smollm2, "Llama untied": llama, "Marian": marian, "T5": t5}
SPECIAL = {"bos": "<|begin|>", "eos": "<|end|>", "pad": "<|pad|>"}


def lexicon_rows(size: Size) -> dict[str, list[dict[str, str]]]:
    """Sentences and the same in a made-up language, word by word; one per split."""
    chance = random.Random(7)
    words = sorted({"".join(chance.choices(SYLLABLES, k=chance.randint(2, 3))) for _ in range(900)})
    chance.shuffle(words)
    known = dict(zip(words[: size.words], words[size.words : 2 * size.words], strict=True))
    sizes = {"train": 4000, "validation": 8, "test": size.prompts}
    found: dict[str, list[dict[str, str]]] = {}
    for split, count in sizes.items():
        result = [chance.choices(sorted(known), k=chance.randint(1, 5)) for _ in range(count)]
        found[split] = [
            {"source": " ".join(each), "target": " ".join(known[word] for word in each)}
            for each in result
        ]
    return found


def spoken(row: Mapping[str, str]) -> str:
    """A row as a conversation in the template's writing."""
    turns = (("user", row["source"]), ("assistant", row["target"]))
    return "".join(f"{TURNS[0]}{who}\n{what}{TURNS[1]}\n" for who, what in turns)


def masked(ids: Any, pad: int) -> Any:
    """Labels: the tokens, and nothing where there is padding."""
    return ids.masked_fill(ids == pad, -100)


def pairs_of(tokenizer: Any, rows: Mapping[str, list[dict[str, str]]]) -> Any:
    """How sources and targets become a batch of an encoder and its decoder."""

    def batch_of(chosen: Sequence[int]) -> Any:
        sources, targets = ([rows["train"][i][k] for i in chosen] for k in ("source", "target"))
        batch = tokenizer(sources, text_target=targets, padding=True, return_tensors="pt")
        kept = {key: batch[key] for key in ("input_ids", "attention_mask")}
        return {**kept, "labels": masked(batch["labels"], tokenizer.pad_token_id)}

    return batch_of


def learn(kind: Any, config: Any, batch_of: Any, rows: int, size: Size, folder: Path) -> None:
    """Write a model of chance weights that has learned the made-up language a little: such that its
    answers are words, and end."""
    import torch

    torch.manual_seed(0)
    model = kind(config)
    chance = random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    warming = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=size.steps // 2)
    for step in range(size.steps):
        loss = model(**batch_of(chance.choices(range(rows), k=16))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warming.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"{kind.__name__}: step {step}, loss {loss.item():.2f}", file=sys.stderr)
    model.save_pretrained(folder)


def files_of(
    rows: Mapping[str, list[dict[str, str]]], folder: Path, columns: Mapping[str, str]
) -> dict[str, Any]:
    """A recipe's data: the rows as files beside the model."""
    place = folder.with_name(f"{folder.name}-rows")
    place.mkdir(parents=True)
    for split, found in rows.items():
        lines = [json.dumps(row) for row in found[:200]]
        (place / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    named = {"prompt": "source", "completion": "target"} if not columns else dict(columns)
    return {"kind": "files", "path": str(place), "max_length": 128, "columns": named}


def rewriting(rows: Mapping[str, list[dict[str, str]]], folder: Path, size: Size) -> dict[str, Any]:
    """A recipe's data and task for an encoder and its decoder."""
    own = {"source": "source", "target": "target"}
    task = {"kind": "translation", "target_length": 48, "generate": generating(size)}
    return {"data": files_of(rows, folder, own), "task": task}


def generating(size: Size) -> dict[str, Any]:
    """How texts are generated."""
    return {"rows": 2, "max_new_tokens": size.most, "untrained_baseline": False}


def byte_tokenizer(rows: Mapping[str, list[dict[str, str]]]) -> Any:
    """A tokenizer of pairs of bytes, with tokens for turns."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=[*SPECIAL.values(), *TURNS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(rows), trainer)
    named = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **named, extra_special_tokens=list(TURNS)
    )


def sentences(rows: Mapping[str, list[dict[str, str]]]) -> list[str]:
    """All that vocabularies are learned from."""
    return [text for row in rows["train"] for text in row.values()]


def sentence_pieces(rows: Mapping[str, list[dict[str, str]]], kind: str, **ids: int) -> bytes:
    """A sentencepiece model."""
    import io

    import sentencepiece

    to = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(rows)),
        model_writer=to,
        model_type=kind,
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **ids,
    )
    return to.getvalue()


def write_marian_tokenizer(rows: Mapping[str, list[dict[str, str]]], folder: Path) -> None:
    """Two sentencepiece models, and one vocabulary whose ids are neither's."""
    import sentencepiece

    model = sentence_pieces(rows, "unigram")
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(model)
    reader = sentencepiece.SentencePieceProcessor(model_proto=model)
    subwords = {reader.id_to_piece(index) for index in range(reader.get_piece_size())}
    words = sorted(subwords - {"<unk>", "<s>", "</s>"})
    ids = {word: index for index, word in enumerate(["</s>", "<unk>", *words, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    named = {"tokenizer_class": "MarianTokenizer", "model_max_length": 256}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")


COLUMNS = ("model", "variant", "prompts", "equal texts and ends", "near ties", "end by themselves",
           "different texts")  # fmt: skip


def table(found: Sequence[Measured]) -> str:
    """The table of what was measured, in Markdown."""
    head = [*COLUMNS, "largest difference of a logit", "opens", "as trained"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for each in found:
        opens = "clean" if each.clean else "WARNS"
        opens += {None: "", True: ", by pipeline too", False: ", pipeline DIFFERS"}[each.pipeline]
        cells = [
            f"{each.model} ({each.weights / 1e6:.0f} M)",
            each.variant,
            each.prompts,
            each.equal_texts,
            each.near_ties,
            each.ended,
            each.distinct,
            f"{each.largest_difference:.2g} of {each.largest_logit:.3g}",
            opens,
            "yes" if each.as_trained else "NO",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
