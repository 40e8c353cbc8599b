"""A column of nested values, each with keys and types of its own, held on disk as json."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from typing import Any


@dataclass
class NestedColumn:
    """A feature of `datasets` for lists, mappings and texts that share no type.

    A row gives the value back as it was: no keys of other rows, and no text taken for the json that
    it looks like, as `datasets.Json` (5.2) takes it.
    """

    _type: str = field(default="NestedColumn", init=False, repr=False)

    def __call__(self) -> Any:
        """What Arrow holds."""
        import pyarrow

        return pyarrow.string()

    def encode_example(self, value: Any) -> str:
        """A value as json."""
        return json.dumps(value, ensure_ascii=False)

    def decode_example(self, text: str, token_per_repo_id: Any = None) -> Any:
        """The value again."""
        return json.loads(text)


def nested_column() -> NestedColumn:
    """The feature, by whose name `datasets` finds it in files of its cache."""
    from datasets.features.features import _FEATURE_TYPES, register_feature

    if NestedColumn.__name__ not in _FEATURE_TYPES:
        with warnings.catch_warnings():  # it warns that it is experimental
            warnings.simplefilter("ignore")
            register_feature(NestedColumn, NestedColumn.__name__)
    return NestedColumn()
