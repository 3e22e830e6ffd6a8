"""Near-equal texts: MinHash proposes pairs, the exact Jaccard similarity of their shingles decides.

Banded MinHash signatures (Broder 1997; Indyk & Motwani 1998) put texts that may be alike into common
buckets; within a bucket the prefix filter (Chaudhuri, Ganti & Kaushik 2006) leaves out pairs that cannot
reach the threshold, so that rows made from one template, which share most buckets, stay linear too.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from distillctl.types import JSON

SHINGLE = 3  # words
_SLOTS = 128  # of a signature
_RECALL = 0.999  # share of the pairs right at the threshold that must meet in a bucket
_SEED = 1
_BATCH = 4096
_MOST_PER_GROUP = 32  # members of one group that a bucket remembers

# A word, one CJK character or kana, or one symbol. Sentence marks, quotes and invisible characters are no
# part of an input's identity; the symbols of code and arithmetic are.
_CJK = "\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(
    rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s.,;:!?…'\"“”‘’«»¿¡()。、\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")


def normal(text: str) -> str:
    """`text` as its lower-case words and symbols, parted by single blanks; itself where it has none.

    Two texts with the same normal form count as equal.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(_TOKEN.findall(text.casefold())) or text.strip()


def normal_input(fields: Mapping[str, JSON], names: Iterable[str]) -> str:
    """Normal form of what varies in a prompt: the values of its variables, `names`, one after another."""
    values = (fields.get(name) for name in names)
    return " | ".join("" if value is None else normal(str(value)) for value in values)


def shingles(text: str) -> frozenset[str]:
    """Runs of three words of a normal form; empty where it has fewer, which is then equal or nothing."""
    words = text.split(" ")
    return frozenset(map(" ".join, zip(words, words[1:], words[2:], strict=False)))


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard similarity of two sets, in [0, 1]: shared over all."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared) if shared else 0.0


class Groups:
    """Sets of row numbers that belong together (union-find with path halving)."""

    def __init__(self, size: int) -> None:
        self._parent = array("q", range(size))

    def find(self, item: int) -> int:
        """The row that stands for the group of `item`: its smallest."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self._parent[max(a, b)] = min(a, b)


def near_links(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of distinct normal forms with a similarity of at least `threshold`, as (i, j, similarity).

    Just enough pairs to tie every group of near-equal texts together: a pair that earlier pairs tie
    already is left out, so n texts give fewer than n pairs. Finds at least 99.9 % of what is there, the
    same ones in every process. Time grows with the number of texts.
    """
    groups = Groups(len(texts))
    for keys in _band_keys(texts, threshold):
        for bucket in _buckets(keys):
            if len({groups.find(i) for i in bucket}) > 1:
                yield from _links_within(bucket, texts, threshold, groups)


def _band_keys(texts: Sequence[str], threshold: float) -> list[array[int]]:
    """For each band of the signature, its hash by text; 0 stands for a text without shingles."""
    from rensa import RMinHash

    width = _band_width(threshold)
    bands = [array("q", bytes(8 * len(texts))) for _ in range(_SLOTS // width)]
    where = ((i, runs) for i, text in enumerate(texts) if (runs := shingles(text)))
    while batch := list(islice(where, _BATCH)):
        matrix = RMinHash.digest_matrix_from_token_sets([list(runs) for _, runs in batch], _SLOTS, _SEED)
        for (i, _), signature in zip(batch, matrix.to_rows(), strict=True):
            for band, start in zip(bands, range(0, _SLOTS, width), strict=True):
                band[i] = hash(tuple(signature[start:start + width]))
    return bands


def _band_width(threshold: float) -> int:
    """Slots per band: as many as leave the wanted recall at the threshold, for the fewest vain pairs."""
    widths = [2**n for n in range(_SLOTS.bit_length())]
    return max((w for w in widths if 1 - (1 - threshold**w) ** (_SLOTS // w) >= _RECALL), default=1)


def _buckets(keys: array[int]) -> Iterable[list[int]]:
    first: dict[int, int] = {}
    buckets: dict[int, list[int]] = {}
    for i, key in enumerate(keys):
        if key and (earlier := first.setdefault(key, i)) != i:
            buckets.setdefault(key, [earlier]).append(i)
    return buckets.values()


def _links_within(bucket: list[int], texts: Sequence[str], threshold: float,
                  groups: Groups) -> Iterator[tuple[int, int, float]]:
    frequency: Counter[str] = Counter()
    sizes: dict[int, int] = {}
    for i in bucket:
        mine = shingles(texts[i])
        frequency.update(mine)
        sizes[i] = len(mine)
    index: dict[str, list[int]] = defaultdict(list)
    remembered: dict[int, frozenset[str]] = {}
    per_group: Counter[int] = Counter()
    for i in sorted(bucket, key=lambda i: (sizes[i], i)):
        # Two sets that are alike enough share one of their rarest: all but as many as may differ.
        mine, least = shingles(texts[i]), math.ceil(threshold * sizes[i] - 1e-9)
        rarest = sorted(mine, key=lambda run: (frequency[run], run))[:sizes[i] - least + 1]
        for j in dict.fromkeys(j for run in rarest for j in index[run]):
            if sizes[j] < least or groups.find(i) == groups.find(j):
                continue
            if (alike := similarity(mine, remembered[j])) >= threshold:
                groups.join(i, j)
                yield min(i, j), max(i, j), alike
        # Of thousands that are all alike a few stand for the rest, else each would be met by each.
        if per_group[group := groups.find(i)] < _MOST_PER_GROUP:
            per_group[group] += 1
            remembered[i] = mine
            for run in rarest:
                index[run].append(i)
