"""What a data folder holds: token shards per language, and the digest of all that determines the tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from state.document import Document, digest_of
from state.errors import UserError, did_you_mean
from state.layout import DATA_MANIFEST_NAME

TOKENIZER_NAME = "tokenizer.model"
DEFAULT_ALPHA = 0.7
LARGEST_16_BIT_VOCABULARY = 65_536

_SHA256 = r"^[0-9a-f]{64}$"
_RESERVED_NAMES = (DATA_MANIFEST_NAME, TOKENIZER_NAME)


def token_bytes_for(vocab_size: int) -> Literal[2, 4]:
    """Return how many bytes a stored token takes: 2 while every id fits into 16 bits, else 4."""
    return 2 if vocab_size <= LARGEST_16_BIT_VOCABULARY else 4


def language_problem(name: str) -> str | None:
    """Return why a language cannot have this name (it names a folder of shards), or None when it can."""
    if not name or name.startswith("."):
        return "it is empty or starts with a dot"
    if "/" in name or "\\" in name or "\x00" in name:
        return "it has a slash in it"
    if name in _RESERVED_NAMES:
        return "a file of the data folder has this name"
    return None


class Shard(Document):
    """One file of raw little-endian tokens."""

    name: str = Field(description="path within the data folder, with forward slashes")
    num_tokens: int = Field(ge=1)
    sha256: str = Field(pattern=_SHA256)


class Source(Document):
    """One file of text that a language was read from."""

    corpus: int = Field(ge=0, description="which of the corpus folders, in the order in which they were given")
    name: str = Field(description="path within that folder, with forward slashes")
    num_bytes: int = Field(ge=0, description="size of the file")
    sha256: str = Field(pattern=_SHA256)
    num_lines: int = Field(ge=0, description="lines that are not blank")
    num_documents: int = Field(ge=0)
    skipped: dict[str, int] = Field(default_factory=dict, description="lines left out, by reason")


class LanguageData(Document):
    """One language's token stream, cut into shards: the shards in order, joined, are the stream."""

    num_documents: int = Field(ge=1)
    num_tokens: int = Field(ge=1, description="with bos and eos")
    num_bytes_text: int = Field(ge=1, description="UTF-8 bytes of the documents' text")
    shards: tuple[Shard, ...] = Field(min_length=1)
    sources: tuple[Source, ...] = ()

    @property
    def num_lines(self) -> int:
        """Lines read that were not blank."""
        return sum(source.num_lines for source in self.sources)

    @property
    def skipped(self) -> dict[str, int]:
        """Lines left out, by reason, in the order of the reasons' names."""
        total: dict[str, int] = {}
        for source in self.sources:
            for reason, count in source.skipped.items():
                total[reason] = total.get(reason, 0) + count
        return dict(sorted(total.items()))

    @model_validator(mode="after")
    def _shards_add_up(self) -> Self:
        in_shards = sum(shard.num_tokens for shard in self.shards)
        if in_shards != self.num_tokens:
            raise ValueError(f"num_tokens is {self.num_tokens}, but the shards hold {in_shards}")
        return self


class SkippedLine(Document):
    """The place of one line that was left out."""

    file: str
    line: int = Field(ge=1)
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


class DataManifest(Document):
    """A data folder exists when, and only when, this document lies in it; it is written last."""

    schema_version: Literal[1] = 1
    token_bytes: Literal[2, 4]
    vocab_size: int = Field(ge=1)
    bos_id: int = Field(ge=0)
    eos_id: int = Field(ge=0)
    pad_id: int | None = Field(ge=0, description="none: the tokenizer has no padding piece, and training needs none")
    unk_id: int = Field(ge=0)
    tokenizer_file: str = Field(default=TOKENIZER_NAME, description="copy of the SentencePiece model in the data folder")
    tokenizer_sha256: str = Field(pattern=_SHA256)
    languages: dict[str, LanguageData] = Field(min_length=1)
    first_skipped: tuple[SkippedLine, ...] = Field(default=(), description="the first lines left out, for people")
    data_sha256: str = Field(pattern=_SHA256, description="digest of all that determines the tokens and their order")

    @classmethod
    def sealed(cls, **fields: Any) -> Self:
        """Return the manifest of these fields with its `data_sha256` computed from them."""
        draft = cls.model_construct(**fields)
        return cls(**fields, data_sha256=data_sha256(draft))

    @property
    def num_tokens(self) -> int:
        """Tokens of all languages."""
        return sum(language.num_tokens for language in self.languages.values())

    @property
    def tokens_by_language(self) -> dict[str, int]:
        """Tokens per language, in the order of the languages' names."""
        return {name: self.languages[name].num_tokens for name in sorted(self.languages)}

    @field_validator("languages")
    @classmethod
    def _languages_name_folders(cls, languages: dict[str, LanguageData]) -> dict[str, LanguageData]:
        for name in languages:
            if problem := language_problem(name):
                raise ValueError(f"{name!r} cannot name a language: {problem}")
        return languages

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.token_bytes < token_bytes_for(self.vocab_size):
            raise ValueError(f"{self.vocab_size} ids do not fit into {self.token_bytes} bytes")
        if self.data_sha256 != data_sha256(self):
            raise ValueError("data_sha256 does not match the rest of the document")
        return self


def data_sha256(manifest: DataManifest) -> str:
    """Return the digest of all that determines the tokens and their order.

    It leaves out where the text came from and what was skipped: the shards' digests cover the tokens themselves.
    """
    return digest_of(
        {
            "token_bytes": manifest.token_bytes,
            "vocab_size": manifest.vocab_size,
            "ids": [manifest.bos_id, manifest.eos_id, manifest.pad_id, manifest.unk_id],
            "tokenizer": manifest.tokenizer_sha256,
            "languages": {
                name: [[shard.num_tokens, shard.sha256] for shard in language.shards]
                for name, language in manifest.languages.items()
            },
        }
    )


def mixture_weights(
    tokens_by_language: Mapping[str, int],
    alpha: float = DEFAULT_ALPHA,
    given: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return each language's share of the training sequences, in name order; the shares sum to 1.

    Args:
        tokens_by_language: Tokens of every language present.
        alpha: Without `given`, shares are proportional to tokens ** alpha: 1 is proportional, 0 is equal.
        given: Weights to take instead, in any unit. A language that it does not name gets the share 0.

    Raises:
        UserError: there is no language or one without tokens, `given` names a language that is not present, or a weight
            is negative, not finite, or all are zero.
    """
    languages = sorted(tokens_by_language)
    empty = [name for name in languages if tokens_by_language[name] < 1]
    if not languages or empty:
        raise UserError(
            f"languages without tokens: {', '.join(empty)}" if empty else "there are no languages to mix",
            expected="at least one language, each with text",
        )
    if given is None:
        if not (math.isfinite(alpha) and alpha >= 0.0):
            raise UserError(f"alpha is {alpha}", expected="a number from 0 (equal shares) to 1 (shares as the tokens are)")
        raw = {name: float(tokens_by_language[name]) ** alpha for name in languages}
    else:
        _check_given(given, languages)
        raw = {name: float(given.get(name, 0.0)) for name in languages}
    total = math.fsum(raw.values())
    if not 0.0 < total < math.inf:
        raise UserError(f"the weights {raw} sum to {total}", expected="at least one weight above zero")
    return {name: weight / total for name, weight in raw.items()}


def _check_given(given: Mapping[str, float], languages: list[str]) -> None:
    for name, weight in given.items():
        if name not in languages:
            raise UserError(
                f"a weight is given for {name!r}, which is not in the data",
                expected=f"only {', '.join(languages)}",
                remedy=did_you_mean(name, languages) or "correct the name, or add text in this language to the corpus",
            )
        if not (math.isfinite(weight) and weight >= 0.0):
            raise UserError(f"the weight of {name!r} is {weight}", expected="a finite number that is not negative")
