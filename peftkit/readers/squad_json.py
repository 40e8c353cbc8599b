"""Rows of SQuAD's own JSON files, which nest questions in paragraphs of articles."""

from collections.abc import Iterator
from typing import Any


def is_squad(value: Any) -> bool:
    """Return whether a parsed file is `{"data": [{"paragraphs": [...]}, ...]}` (SQuAD 1.1, 2.0)."""
    articles = value.get("data") if isinstance(value, dict) else None
    return isinstance(articles, list) and bool(articles) and all(map(_is_article, articles))


def flatten_squad(value: Any) -> Iterator[Any]:
    """Yield a row per question: `id`, `title`, `context`, `question`, and `answers` with lists of
    `text` and `answer_start`. What is not a paragraph or a question is yielded as a string, which
    the caller reports."""
    for article in value["data"]:
        for paragraph in article["paragraphs"]:
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list):
                yield str(paragraph)
                continue
            for question in questions:
                yield _question_row(question, article.get("title"), paragraph.get("context"))


def _is_article(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("paragraphs"), list)


def _question_row(question: Any, title: Any, context: Any) -> Any:
    if not isinstance(question, dict):
        return str(question)
    answers = question.get("answers")
    if isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        answers = {
            "text": [answer.get("text") for answer in answers],
            "answer_start": [answer.get("answer_start") for answer in answers],
        }
    query = {"id": question.get("id"), "question": question.get("question")}
    return {"title": title, "context": context, **query, "answers": answers}
