"""YAML 1.2 with PyYAML: `no` is a string, `1e-4` a number, and repeated keys are errors."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

SCALARS = [  # the core schema: what a plain word may mean besides itself, and how it begins
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
]


def load_yaml(text: str) -> Any:
    """Return the value of `text`, read as YAML 1.2. Raises `yaml.YAMLError`."""
    try:
        return yaml.load(text, Loader=Loader)
    except RecursionError:
        raise yaml.YAMLError("its lists or mappings are nested too deeply") from None


def parse_value(text: str) -> Any:
    """Return the value typed on a command line: a number, boolean or null; a list, mapping or
    quoted string in YAML; otherwise the text itself.

    Raises `yaml.YAMLError` for YAML of which a part would be lost.
    """
    bare = text.strip()
    if any(re.fullmatch(pattern, bare) for _, pattern, _ in SCALARS):
        return load_yaml(bare)
    if not bare.startswith(("[", "{", '"', "'")):
        return text
    value = load_yaml(bare)
    for event in yaml.parse(bare):
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise yaml.YAMLError("it has a word that begins with & or !")
    node = yaml.compose(bare, Loader=Loader)
    if node is not None and (behind := bare[node.end_mark.index :].strip()):
        raise yaml.YAMLError(f"{behind!r} would be lost")
    return value


def find_literals(text: str) -> dict[str, str]:
    """Return how each number, boolean and null in YAML is written, by its dotted path."""
    node = yaml.compose(text, Loader=Loader)
    try:
        return {} if node is None else dict(walk_literals(node, ""))
    except RecursionError:
        raise yaml.YAMLError("a list or mapping contains itself") from None


def walk_literals(node: yaml.Node, path: str) -> Iterator[tuple[str, str]]:
    """Yield path and text of every value below a node that is not a string."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag != "tag:yaml.org,2002:str":
            yield path, node.value
        return
    pairs = node.value if isinstance(node, yaml.MappingNode) else enumerate(node.value)
    for key, value in pairs:
        step = key.value if isinstance(key, yaml.Node) else key
        yield from walk_literals(value, f"{path}.{step}" if path else str(step))


def dump_yaml(value: Any) -> str:
    """Return `value` as YAML that has the same meaning in version 1.2 and in PyYAML's 1.1."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def summarize_error(error: yaml.YAMLError) -> str:
    """Return what PyYAML found wrong, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


class Loader(yaml.SafeLoader):
    """PyYAML's loader with the scalars of YAML 1.2, for which repeated keys are errors."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # its own, in place of those of YAML 1.1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raise an error for a repeated key, where PyYAML would keep the last."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is set twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which quotes strings that either version of YAML would read as another
    type."""


def construct_integer(loader: Loader, node: yaml.ScalarNode) -> int:
    """Return an integer; PyYAML's own constructor would read `012` as octal."""
    text = str(loader.construct_scalar(node))
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def represent_text(dumper: Dumper, value: str) -> yaml.ScalarNode:
    """Represent a string; PyYAML 6.0.3 would write rare line ends unquoted, and read them as
    spaces."""
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


Loader.add_constructor("tag:yaml.org,2002:int", construct_integer)
Dumper.add_representer(str, represent_text)
for _tag, _pattern, _first in SCALARS:
    for _kind in (Loader, Dumper):
        _kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), _first
        )
