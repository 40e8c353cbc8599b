"""Nested json: rows that stand in paragraphs of articles, as in SQuAD's own files."""

from collections.abc import Iterator
from typing import Any


def is_nested(value: Any) -> bool:
    """Whether a parsed file is `{"data": [{"paragraphs": [...]}, ...]}`, of SQuAD 1.1 or 2.0."""
    articles = value.get("data") if isinstance(value, dict) else None
    return isinstance(articles, list) and bool(articles) and all(map(is_article, articles))


def is_article(value: Any) -> bool:
    """Whether a value is one article."""
    return isinstance(value, dict) and isinstance(value.get("paragraphs"), list)


def flattened(value: Any) -> Iterator[Any]:
    """One row a question: `id`, `title`, `context`, `question`, and `answers` with lists of `text`
    and `answer_start`; what is no paragraph or question is given as text, to be complained of."""
    for article in value["data"]:
        for paragraph in article["paragraphs"]:
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list):
                yield str(paragraph)
                continue
            for question in questions:
                yield row_of(question, article.get("title"), paragraph.get("context"))


def row_of(question: Any, title: Any, context: Any) -> Any:
    """One question's row."""
    if not isinstance(question, dict):
        return str(question)
    answers = question.get("answers")
    if isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        answers = {
            "text": [answer.get("text") for answer in answers],
            "answer_start": [answer.get("answer_start") for answer in answers],
        }
    asked = {"id": question.get("id"), "question": question.get("question")}
    return {"title": title, "context": context, **asked, "answers": answers}
