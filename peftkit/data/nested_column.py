"""A `datasets` feature for nested values of varying structure, stored as JSON."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from typing import Any


@dataclass
class NestedColumn:
    """A feature for lists, mappings and texts without a common type.

    Values are returned unchanged: without the keys of other rows, and without parsing text that
    looks like JSON, as `datasets.Json` (5.2) does.
    """

    _type: str = field(default="NestedColumn", init=False, repr=False)

    def __call__(self) -> Any:
        """Return the Arrow type."""
        import pyarrow

        return pyarrow.string()

    def encode_example(self, value: Any) -> str:
        """Return a value as JSON."""
        return json.dumps(value, ensure_ascii=False)

    def decode_example(self, text: str, token_per_repo_id: Any = None) -> Any:
        """Return the value of a JSON text."""
        return json.loads(text)


def nested_column() -> NestedColumn:
    """Return the feature, registered so that `datasets` finds it by name in cached files."""
    from datasets.features.features import _FEATURE_TYPES, register_feature

    if NestedColumn.__name__ not in _FEATURE_TYPES:
        with warnings.catch_warnings():  # it warns that it is experimental
            warnings.simplefilter("ignore")
            register_feature(NestedColumn, NestedColumn.__name__)
    return NestedColumn()
