"""Tokenizers: texts -> numbers, learned from texts or read from a tokenizer.json of the library `tokenizers`.

Letters: B batch, T text length in tokens.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ZooError, because, nearest
from zoo.paths import expanded

FILE = "tokenizer.json"
LEARNED = ("wordpiece", "bpe", "words")  # kinds that can be learned
KINDS = {"WordPiece": "wordpiece", "BPE": "bpe", "WordLevel": "words", "Unigram": "unigram"}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of a learned tokenizer, numbered from 0
ROLES = {  # what a special token is for, and its usual names
    "pad": ("[PAD]", "<pad>", "<|padding|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>", "<|startoftext|>"),
    "sep": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}
LEARNED_IDS = {role: SPECIAL.index(names[0]) for role, names in ROLES.items()}
CONTROLS = r"[\x00-\x08\x0e-\x1f\x7f]"  # characters that a learned wordpiece or words leaves out
LARGEST = 64 << 20  # bytes of a tokenizer.json
BYTES = 256  # symbols that a learned bpe starts from
LONGEST = 1 << 14  # characters of one text that a tokenizer is learned from
CHARACTERS = 64  # of a text for each token that is kept: what lies behind them is cut off before tokenizing
LONGEST_WORD = 100  # characters; wordpiece reads a longer word as unknown


class Tokenizer:
    """Texts -> numbers, as a tokenizer.json says. Never changed once made.

    json     bytes of the file
    kind     wordpiece, bpe, words or unigram
    size     largest number of a token + 1: an embedding needs at least as many rows
    special  names of the special tokens by role (a key of ROLES); a role that the file doesn't fill is missing

    Raises ZooError for bytes that are too many or no tokenizer.
    """

    def __init__(self, json: bytes, where: str = FILE):
        library = _library()
        if len(json) > LARGEST:
            raise ZooError(f"{where} has {len(json):,} bytes, and a tokenizer has at most {LARGEST:,}")
        try:
            self._tokenizer = library.Tokenizer.from_str(json.decode("utf-8"))
            numbers = self._tokenizer.get_vocab(with_added_tokens=True)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library's Rust is no Exception
            raise ZooError(f"{where} is not a tokenizer of the library tokenizers: {because(error)}") from error
        if not numbers:
            raise ZooError(f"{where} is a tokenizer without any token")
        self.json, self.where = json, where
        self.kind = KINDS.get(type(self._tokenizer.model).__name__, "")
        if not self.kind:
            raise ZooError(
                f"{where} is a tokenizer of the kind {type(self._tokenizer.model).__name__}; known: {', '.join(KINDS)}"
            )
        self.size = max(numbers.values()) + 1
        named = {role: next((name for name in names if name in numbers), None) for role, names in ROLES.items()}
        self.special = {role: name for role, name in named.items() if name is not None}
        self._numbers = {role: numbers[name] for role, name in self.special.items()}
        self._tokenizer.no_padding()

    def id(self, role: str) -> int | None:
        """The number of a special token (pad, unk, cls, sep, mask), or None where there is none."""
        return self._numbers.get(role)

    @property
    def special_ids(self) -> list[int]:
        """Numbers of the special tokens, in ascending order."""
        return sorted(self._numbers.values())

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """B texts -> (B, T) int64 numbers and (B, T) int64 ones where a token stands, with T = `length`.

        Longer texts are cut, shorter texts are padded behind. A text without any token has one padding that counts as
        a token. Raises ZooError for a value that isn't a text.
        """
        cut = [_cut(text, CHARACTERS * length, number) for number, text in enumerate(texts)]
        self._tokenizer.enable_truncation(length)
        ids = np.full((len(cut), length), self.id("pad") or 0, dtype=np.int64)
        attended = np.zeros((len(cut), length), dtype=np.int64)
        for row, found in enumerate(self._tokenizer.encode_batch_fast(cut)):
            count = len(found.ids)
            ids[row, :count], attended[row, : max(count, 1)] = found.ids, 1
        return torch.from_numpy(ids), torch.from_numpy(attended)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Numbers (T,) -> a text without special tokens."""
        return self._tokenizer.decode([int(number) for number in ids], skip_special_tokens=True)

    def __deepcopy__(self, memo: dict) -> Tokenizer:
        return self

    def __reduce__(self) -> tuple:
        return Tokenizer, (self.json, self.where)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.json == other.json

    def __hash__(self) -> int:
        return hash(self.json)


def read_tokenizer(file: str | Path) -> Tokenizer:
    """A tokenizer from a tokenizer.json. Raises ZooError for a missing or foreign file."""
    path = expanded(file)
    try:
        with open(path, "rb") as stream:
            return Tokenizer(stream.read(LARGEST + 1), str(path))
    except OSError as error:
        raise ZooError(f"the tokenizer {path} can't be read: {error.strerror or error}") from error


def learn_tokenizer(texts: Sequence[str], vocabulary: int, kind: str = "wordpiece") -> Tokenizer:
    """A tokenizer with at most `vocabulary` tokens from texts. The same texts and vocabulary give the same bytes.

    Args:
        texts: of the training split; only the first LONGEST characters of each are read.
        vocabulary: how many tokens there may be, special tokens included.
        kind: wordpiece (lower case, the characters that fill half of the vocabulary, and parts of words), bpe (bytes
            and what follows on them, so nothing is unknown) or words (lower case, whole words).

    Raises ZooError for an unknown kind, a vocabulary that is too small, and texts without any text.
    """
    check_learnable(kind, vocabulary)
    library = _library()
    before = _before_learning(library, kind)
    if not any(map(str.strip, _shortened(texts))):
        raise ZooError(f"{len(texts)} texts hold no text at all, so no tokenizer can be learned from them")
    model, decoder = {"wordpiece": _wordpiece, "bpe": _bpe, "words": _words}[kind](library, before, texts, vocabulary)
    tokenizer = library.Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = before.normalizer, before.pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return Tokenizer(tokenizer.to_str().encode())


def check_learnable(kind: str, vocabulary: int) -> None:
    """Raises ZooError unless a tokenizer of that kind and size can be learned."""
    if kind not in LEARNED:
        raise ZooError(f"{kind!r} is not a kind of tokenizer that can be learned{nearest(kind, LEARNED)}")
    least = len(SPECIAL) + (BYTES if kind == "bpe" else 1)
    if vocabulary < least:
        raise ZooError(
            f"backbone.vocabulary is {vocabulary}; a tokenizer of the kind {kind} has at least {least} tokens"
        )


def _library() -> Any:
    """The library `tokenizers`. Its threads are switched off: they would stand still in a forked process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError as error:
        raise ZooError("text backbones need the library tokenizers: pip install 'pretext-zoo[text]'") from error
    import tokenizers.decoders
    import tokenizers.models
    import tokenizers.normalizers
    import tokenizers.pre_tokenizers
    import tokenizers.processors
    import tokenizers.trainers

    return tokenizers


def _cut(text: str, most: int, number: int) -> str:
    """At most `most` characters of a text, halves of characters replaced. Raises ZooError for what is no text."""
    if not isinstance(text, str):
        raise ZooError(f"text {number} of the batch is a {type(text).__name__}; a text backbone reads str")
    return text[:most].encode("utf-8", "replace").decode("utf-8")


def _shortened(texts: Sequence[str]) -> Iterator[str]:
    return (_cut(text, LONGEST, number) for number, text in enumerate(texts))


def _before_learning(library: Any, kind: str) -> Any:
    """A tokenizer that splits texts into words and knows none."""
    tokenizer = library.Tokenizer(library.models.BPE())
    steps = [library.normalizers.NFC()]
    if kind == "bpe":
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        # The library's own cleaning would drop joiners, which Persian and emoji need, and accents, which are vowels
        # in many scripts.
        steps.append(library.normalizers.Replace(library.Regex(CONTROLS), ""))
        steps.append(library.normalizers.BertNormalizer(clean_text=False, strip_accents=False))
        tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.normalizer = library.normalizers.Sequence(steps)
    return tokenizer


def _counted(tokenizer: Any, texts: Sequence[str]) -> Counter[str]:
    """How often each word occurs."""
    words: Counter[str] = Counter()
    for text in _shortened(texts):
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        words.update(word for word, _ in pieces)
    return words


def _most_common(counts: Counter[str]) -> list[str]:
    """The most frequent first, equally frequent ones in the order of their characters."""
    return sorted(counts, key=lambda name: (-counts[name], name))


def _words(library: Any, before: Any, texts: Sequence[str], vocabulary: int) -> tuple[Any, Any]:
    kept = [word for word in _most_common(_counted(before, texts)) if word not in SPECIAL]
    names = [*SPECIAL, *kept[: vocabulary - len(SPECIAL)]]
    return library.models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"), None


def _bpe(library: Any, before: Any, texts: Sequence[str], vocabulary: int) -> tuple[Any, Any]:
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    before.train_from_iterator(_shortened(texts), trainer)
    return before.model, library.decoders.ByteLevel()


def _wordpiece(library: Any, before: Any, texts: Sequence[str], vocabulary: int) -> tuple[Any, Any]:
    # The trainer numbers a character inside of words, ##a, when it first meets one, in an order that differs from run
    # to run, and breaks ties by number. Given among the special tokens, every ##a has its number before.
    alphabet, inside = _alphabet(_counted(before, texts), (vocabulary - len(SPECIAL)) // 2)
    before.model = library.models.WordPiece(unk_token="[UNK]")
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL, *inside],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    before.train_from_iterator(_shortened(texts), trainer)
    numbers = before.get_vocab(with_added_tokens=True)
    model = library.models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD)
    return model, library.decoders.WordPiece()


def _alphabet(words: Counter[str], most: int) -> tuple[list[str], list[str]]:
    """The most frequent characters of words, and ##a for those of them that stand behind another; `most` altogether."""
    everywhere: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for word, count in words.items():
        for place, character in enumerate(word):
            everywhere[character] += count
            if place:
                inside[character] += count
    kept: list[str] = []
    for character in _most_common(everywhere):
        most -= 2 if character in inside else 1
        if most < 0 and kept:
            break
        kept.append(character)
    return sorted(kept), sorted(f"##{character}" for character in kept if character in inside)
