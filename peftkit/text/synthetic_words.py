"""Words of the synthetic dataset, all in the toy models' vocabulary."""

TOPICS = {
    "sport": "goal match team coach league stadium referee trophy",
    "food": "bread soup pepper kitchen cheese supper recipe garlic",
    "music": "guitar song choir melody drum concert violin chorus",
    "weather": "rain storm cloud sunshine frost thunder breeze fog",
    "money": "bank loan price market salary invoice budget coin",
    "travel": "train ticket airport hotel luggage border journey map",
    "animals": "dog horse eagle rabbit whale sheep tiger spider",
    "school": "teacher exam lesson pupil homework classroom essay grade",
}
"""The words that identify each class."""
COMMON_WORDS = "the a this that we they he she saw had was found with near after again today"
"""Words in texts of all classes."""


def vocabulary() -> list[str]:
    """Return every word that a generated text can contain."""
    return sorted({word for words in [*TOPICS.values(), COMMON_WORDS] for word in words.split()})
