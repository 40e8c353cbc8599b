"""Made-up rows in five scripts: texts with labels, pairs of texts and conversations."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

Script = Literal["Latin", "Cyrillic", "Devanagari", "Han", "Arabic"]
SCRIPTS: tuple[Script, ...] = get_args(Script)
LABELS = ("market", "music", "river")
"""Of the classified texts, as a run sorts them."""
WORDS: dict[Script, dict[str, list[str]]] = {
    "Latin": {
        "market": ["Käse", "bread", "prix", "merchant", "scales", "añejo"],
        "music": ["Geige", "song", "flûte", "choir", "drum", "canción"],
        "river": ["Brücke", "water", "rivière", "boat", "reed", "orilla"],
        "": ["the", "old", "über", "is", "near", "où", "never", "quiet"],
    },
    "Cyrillic": {
        "market": ["рынок", "хлеб", "цена", "купец", "весы", "сыр"],
        "music": ["скрипка", "песня", "флейта", "пение", "барабан", "нота"],
        "river": ["ручей", "вода", "мост", "лодка", "тростник", "волна"],
        "": ["старый", "очень", "тихо", "около", "был", "не", "и", "ёлка"],
    },
    "Devanagari": {
        "market": ["बाज़ार", "रोटी", "दाम", "व्यापारी", "तराज़ू", "पनीर"],
        "music": ["सितार", "गीत", "बाँसुरी", "ताल", "ढोल", "सुर"],
        "river": ["नदी", "पानी", "पुल", "नाव", "किनारा", "लहर"],
        "": ["पुराना", "बहुत", "शांत", "पास", "था", "नहीं", "और", "यह"],
    },
    "Han": {
        "market": ["市场", "面包", "价格", "商人", "天平", "奶酪"],
        "music": ["提琴", "歌曲", "长笛", "合唱", "鼓声", "音符"],
        "river": ["河流", "清水", "桥梁", "小船", "芦苇", "岸边"],
        "": ["古老", "非常", "安静", "附近", "曾经", "不是", "和", "这里"],
    },
    "Arabic": {
        "market": ["السوق", "خبز", "سعر", "تاجر", "ميزان", "جبن"],
        "music": ["كمان", "أغنية", "ناي", "جوقة", "طبل", "لحن"],
        "river": ["النهر", "ماء", "جسر", "قارب", "قصب", "ضفة"],
        "": ["قديم", "جدا", "هادئ", "قرب", "كان", "ليس", "و", "هذا"],
    },
}
"""Words of each subject, and under "" those of any."""
STOPS: dict[Script, str] = {
    "Latin": ".", "Cyrillic": ".", "Devanagari": "।", "Han": "。", "Arabic": "؟",
}  # fmt: skip
Row = dict[str, Any]


def sentence(chance: random.Random, script: Script, subject: str, fewest: int = 3) -> str:
    """Some words on a subject and as many others, as the script writes them."""
    words = chance.choices(WORDS[script][subject], k=chance.randint(fewest, fewest + 2))
    words += chance.choices(WORDS[script][""], k=chance.randint(fewest - 1, fewest + 1))
    chance.shuffle(words)
    return ("" if script == "Han" else " ").join(words) + STOPS[script]


def texts(script: Script, count: int, seed: int = 0) -> list[str]:
    """Sentences on any subject."""
    return [row["text"] for row in classified(script, count, seed)]


def classified(script: Script, count: int, seed: int = 0) -> list[Row]:
    """Rows of `text` and `label`, each label as often as the others."""
    chance = random.Random(f"{script} {seed}")
    subjects = [LABELS[index % len(LABELS)] for index in range(count)]
    return [{"text": sentence(chance, script, s), "label": s} for s in subjects]


def pairs(script: Script, count: int, seed: int = 0, into: Script = "Latin") -> list[Row]:
    """Rows of `source` and a `target` of the same subject, in another script or the same."""
    chance = random.Random(f"{script} {into} {seed}")
    subjects = chance.choices(LABELS, k=count)
    return [
        {"source": sentence(chance, script, s), "target": sentence(chance, into, s, 2)}
        for s in subjects
    ]


def talks(script: Script, count: int, seed: int = 0) -> list[Row]:
    """Rows of `messages`: one or two questions, each with its answer."""
    chance = random.Random(f"{script} talks {seed}")
    return [{"messages": _talk(chance, script, 1 + index % 2)} for index in range(count)]


def _talk(chance: random.Random, script: Script, turns: int) -> list[dict[str, str]]:
    said = []
    for _ in range(turns):
        subject = chance.choice(LABELS)
        for role in ("user", "assistant"):
            said.append({"role": role, "content": sentence(chance, script, subject, 2)})
    return said


def written(
    folder: Path,
    rows: Callable[[Script, int, int], list[Row]],
    scripts: Sequence[Script] = SCRIPTS,
    sizes: Mapping[str, int] = {"train": 30, "validation": 5, "test": 10},
) -> Path:
    """The folder with a file for each split, its rows shared out among the scripts."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(sizes.items()):
        found = [row for script in scripts for row in rows(script, count // len(scripts), seed)]
        lines = [json.dumps(row, ensure_ascii=False) for row in found]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
