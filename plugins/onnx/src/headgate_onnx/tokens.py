"""From text to rows of token ids, and from rows to padded batches.

The tokenizer's own truncation and padding are switched off: what a caller sent is either run whole, refused
with its length, or cut on the side that the caller named. May import the plugin API; numpy and tokenizers only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec
import numpy as np
from headgate_plugin_api import InvalidRequest, LoadFailed
from numpy.typing import NDArray
from tokenizers import Tokenizer

TOKENIZER_FILE: Final = "tokenizer.json"

Truncate = Literal["END", "START"] | None
Ids = NDArray[np.int64]

_WORTH_A_PASS: Final = 512
"""Tokens from which on a part may be closed early, because shorter rows follow."""


class Row(msgspec.Struct, frozen=True):
    """One sequence as the model takes it, specials included."""

    ids: Ids
    types: Ids | None = None

    def __len__(self) -> int:
        return len(self.ids)


class TooLong(InvalidRequest):
    """An input has more tokens than the model takes."""

    def __init__(self, path: str, tokens: int, limit: int) -> None:
        super().__init__(
            f"{path} has {tokens} tokens, the model takes at most {limit}; shorten it or set truncate to "
            '"END" or "START"',
            path=path,
        )


class Tokens:
    """A model's tokenizer with its limits.

    Attributes:
        limit: The longest row, specials included.
        vocabulary: How many ids there are.
        pad_id: What fills rows up. It is masked, but some models (RoBERTa) derive positions from it.
        template: Specials that are added to a text; `pair_template` those of a pair.
        per_byte: Upper bound of tokens per UTF-8 byte of any text.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        path = folder / TOKENIZER_FILE
        try:
            description = path.read_text(encoding="utf-8")
            self._tokenizer = Tokenizer.from_str(description)
        except Exception as error:  # tokenizers raises bare Exception
            raise LoadFailed(f"{path}: {error}") from error
        # A bare dict there.
        padding = cast("dict[str, Any] | None", self._tokenizer.padding)  # pyright: ignore[reportUnknownMemberType]
        self.pad_id = int((padding or {}).get("pad_id", 0))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.limit = limit
        self.vocabulary = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.template = self._tokenizer.num_special_tokens_to_add(False)
        self.pair_template = self._tokenizer.num_special_tokens_to_add(True)
        self.per_byte = tokens_per_byte(json.loads(description))
        self._front, self._back = self._specials()
        if limit <= self.pair_template:
            raise LoadFailed(f"{path}: a limit of {limit} tokens leaves no room beside the special tokens")

    def count(self, text: str) -> int:
        """Tokens of a text without specials."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def texts(
        self, texts: Sequence[str], paths: Sequence[str], truncate: Truncate, prefix: str = ""
    ) -> list[Row]:
        """Encode texts, each after `prefix`; errors name `paths[i]`. Runs outside the GIL.

        Raises:
            InvalidRequest: A text is empty or no Unicode, or too long and `truncate` is None.
        """
        for text, path in zip(texts, paths, strict=True):
            _check_text(text, path)
        encodings = self._tokenizer.encode_batch_fast([prefix + text for text in texts])
        rows: list[Row] = []
        for encoding, text, path in zip(encodings, texts, paths, strict=True):
            if len(encoding) > self.limit:
                if truncate is None:
                    raise TooLong(path, len(encoding), self.limit)
                rows.append(self._cut(prefix, text, truncate))
            else:
                rows.append(_row(encoding))
        return rows

    def pairs(self, pairs: Sequence[tuple[str, str]], paths: Sequence[str], truncate: Truncate) -> list[Row]:
        """Encode pairs of texts; errors name `paths[i]`.

        Raises:
            InvalidRequest: A text is empty or no Unicode, or a pair too long and `truncate` is None.
        """
        for pair, path in zip(pairs, paths, strict=True):
            for text in pair:
                _check_text(text, path)
        encodings = self._tokenizer.encode_batch_fast(list(pairs))
        rows: list[Row] = []
        for encoding, pair, path in zip(encodings, pairs, paths, strict=True):
            if len(encoding) > self.limit:
                if truncate is None:
                    raise TooLong(path, len(encoding), self.limit)
                rows.append(self._cut_pair(pair, truncate))
            else:
                rows.append(_row(encoding))
        return rows

    def given(self, ids: Sequence[int], path: str, truncate: Truncate) -> Row:
        """Take token ids as they are: the caller made them for this vocabulary, specials included.

        Raises:
            InvalidRequest: There are none, too many, or one is not of the vocabulary.
        """
        if not ids:
            raise InvalidRequest(f"{path} is empty", path=path)
        for place, token in enumerate(ids):
            if not 0 <= token < self.vocabulary:
                raise InvalidRequest(
                    f"{path}[{place}] is {token}, expected a token id from 0 to {self.vocabulary - 1}",
                    path=f"{path}[{place}]",
                )
        if len(ids) > self.limit:
            if truncate is None:
                raise TooLong(path, len(ids), self.limit)
            ids = ids[: self.limit] if truncate == "END" else ids[-self.limit :]
        array = np.array(ids, dtype=np.int64)
        return Row(array, np.zeros_like(array))

    def pad(self, rows: Sequence[Row], *, types: bool) -> dict[str, Ids]:
        """One batch of the model's inputs, padded on the right to the longest row."""
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask}
        if types:
            feeds["token_type_ids"] = np.zeros((len(rows), longest), dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row.ids
            mask[place, : len(row)] = 1
            if types and row.types is not None:
                feeds["token_type_ids"][place, : len(row)] = row.types
        return feeds

    def _specials(self) -> tuple[list[int], list[int]]:
        """Special ids that stand before and after a single text."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a").ids
        front = (len(full) - len(bare)) if not bare else full.index(bare[0])
        return full[:front], full[front + len(bare) :]

    def _cut(self, prefix: str, text: str, truncate: Literal["END", "START"]) -> Row:
        """A text that fits, its prompt whole: a prompt that lost its head would be another task."""
        room = self.limit - self.template
        ids = self._tokenizer.encode(prefix + text, add_special_tokens=False).ids
        if truncate == "END":
            ids = ids[:room]
        else:
            kept = min(self.count(prefix), room - 1) if prefix else 0
            ids = ids[:kept] + ids[len(ids) - (room - kept) :]
        array = np.array([*self._front, *ids, *self._back], dtype=np.int64)
        return Row(array, np.zeros_like(array))

    def _cut_pair(self, pair: tuple[str, str], truncate: Literal["END", "START"]) -> Row:
        """A pair that fits: the longer side gives first, then both alike."""
        first, second = (self._tokenizer.encode(text, add_special_tokens=False) for text in pair)
        room = self.limit - self.pair_template
        half = room // 2
        first_room = min(len(first), max(half, room - len(second)))
        direction = "right" if truncate == "END" else "left"
        first.truncate(first_room, direction=direction)
        second.truncate(room - first_room, direction=direction)
        return _row(self._tokenizer.post_process(first, second))


def tokens_per_byte(description: dict[str, Any]) -> int:
    """Upper bound of tokens per UTF-8 byte, from a tokenizer's own description.

    A token stands for at least one character of the *normalised* text (one byte of it for byte-level ones), so
    what counts is how far normalising can grow a text: not at all without a normaliser; by NFD and lower-casing
    at most 3 characters from 2 bytes; by NFKC at most 11 times (U+FDFA: 3 bytes, 18 characters, 33 bytes).
    """
    normalizers = _normalizers(description.get("normalizer"))
    byte_level = "ByteLevel" in json.dumps(description.get("pre_tokenizer"))
    if not normalizers:
        return 1
    if normalizers <= {"BertNormalizer", "NFD", "Lowercase", "StripAccents", "Strip"} and not byte_level:
        return 2
    return 11


def _normalizers(node: dict[str, Any] | None) -> set[str]:
    if node is None:
        return set()
    if node.get("type") == "Sequence":
        return set[str]().union(*(_normalizers(child) for child in node.get("normalizers", ())))
    return {str(node.get("type"))}


def _check_text(text: str, path: str) -> None:
    if not text:
        raise InvalidRequest(f"{path} is empty", path=path)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"{path} has half a surrogate pair at character {error.start}; expected valid Unicode", path=path
            ) from error


def _row(encoding: Any) -> Row:
    return Row(np.array(encoding.ids, dtype=np.int64), np.array(encoding.type_ids, dtype=np.int64))


def parts(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split a batch into parts of like length, so that little of a pass is padding.

    Args:
        lengths: Tokens of each row.
        budget: Tokens of one part, padding included; a longer row stands alone.

    Returns:
        Indices of the rows of each part; every row is in exactly one.
    """
    result: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        part = result[-1] if result else []
        padded = lengths[part[0]] * len(part) if part else 0
        full = bool(part) and padded + lengths[part[0]] > budget
        # A pass of its own pays once the padding it saves outweighs the cost of starting one.
        wasteful = padded >= _WORTH_A_PASS and lengths[index] * 4 < lengths[part[0]] * 3
        if not part or full or wasteful:
            result.append([index])
        else:
            part.append(index)
    return result
