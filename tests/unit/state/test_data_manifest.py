import json

import pytest
from pydantic import ValidationError

from state.data_manifest import (
    BLOCK_TOKENS,
    DataManifest,
    LanguageData,
    Shard,
    ShardIndex,
    Source,
    SourceShare,
    TokenStream,
    num_blocks,
    token_bytes_for,
)
from state.errors import DataError


def shard(name: str, num_tokens: int, digest: str = "a") -> Shard:
    index = ShardIndex(name=f"{name}.documents", num_documents=2, sha256="f" * 64)
    return Shard(name=f"{name}.tokens", num_tokens=num_tokens, sha256=digest * 64, index=index)


def stream(name: str, num_tokens: int = 10, digest: str = "a") -> TokenStream:
    shards = (shard(name, num_tokens, digest),)
    return TokenStream(num_documents=2, num_tokens=num_tokens, num_bytes_text=30, shards=shards, blocks=(digest * 64,))


def language(num_tokens: int = 10, digest: str = "a", name: str = "hindi", source: int = 0) -> LanguageData:
    dropped = {"duplicate": 3, "too short": 1}
    share = SourceShare(source=source, num_documents=2, num_tokens=num_tokens, num_held_out=1, dropped=dropped)
    return LanguageData(
        **dict(stream(f"{name}.train", num_tokens, digest)), validation=stream(f"{name}.validation", 4), sources=(share,)
    )


SOURCES = tuple(
    Source(corpus=0, name=f"{name}/a.jsonl", num_bytes=40, sha256="c" * 64, num_records=8, skipped={"not JSON": 1})
    for name in ("hindi", "konkani")
)


def manifest(**changes: object) -> DataManifest:
    fields: dict[str, object] = {
        "token_bytes": 2,
        "vocab_size": 4096,
        "bos_id": 2,
        "eos_id": 1,
        "pad_id": 0,
        "unk_id": 3,
        "tokenizer_sha256": "b" * 64,
        "languages": {"hindi": language()},
        "sources": SOURCES,
    }
    return DataManifest.sealed(**{**fields, **changes})


def test_a_manifest_survives_the_way_to_json_and_back():
    written = manifest()
    assert DataManifest.from_json(written.to_json(), "data.json") == written


def test_a_manifest_counts_tokens_and_what_was_left_out():
    data = manifest(languages={"hindi": language(10), "konkani": language(7, name="konkani", source=1)})
    assert data.num_tokens == 17
    assert data.tokens_by_language == {"hindi": 10, "konkani": 7}
    assert data.skipped == {"not JSON": 2}
    assert data.languages["hindi"].dropped == {"duplicate": 3, "too short": 1}


def test_a_manifest_knows_every_file_of_its_folder_and_its_size():
    assert manifest().files == {
        "hindi.train.tokens": 20,
        "hindi.train.documents": 24,
        "hindi.validation.tokens": 8,
        "hindi.validation.documents": 24,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 4097},
        {"eos_id": 5},
        {"pad_id": None},
        {"tokenizer_sha256": "d" * 64},
        {"languages": {"hindi": language(digest="e")}},
        {"languages": {"konkani": language()}},
        {"token_bytes": 4},
    ],
)
def test_everything_that_determines_the_tokens_changes_the_digest(changes: dict[str, object]):
    assert manifest(**changes).data_sha256 != manifest().data_sha256


def test_where_the_text_came_from_and_what_is_held_out_do_not_change_the_digest():
    elsewhere = language().evolve(sources=(), num_documents=3, validation=None)
    assert manifest(languages={"hindi": elsewhere}, sources=()).data_sha256 == manifest().data_sha256


def test_how_a_stream_is_cut_into_shards_does_not_change_the_digest():
    cut = language().evolve(shards=(shard("part-001/x", 4, "d"), shard("part-002/y", 6, "e")))
    assert manifest(languages={"hindi": cut}).data_sha256 == manifest().data_sha256


def test_a_manifest_that_was_changed_by_hand_is_refused():
    text = json.loads(manifest().to_json())
    text["eos_id"] = 3
    with pytest.raises(DataError, match="data_sha256 does not match"):
        DataManifest.from_json(json.dumps(text), "data.json")


def test_shards_that_do_not_add_up_are_refused():
    with pytest.raises(ValidationError, match="the shards hold 9"):
        TokenStream(num_documents=1, num_tokens=10, num_bytes_text=1, shards=(shard("a", 9),), blocks=("a" * 64,))


def test_a_stream_has_a_digest_for_every_block():
    assert [num_blocks(number) for number in (1, BLOCK_TOKENS, BLOCK_TOKENS + 1)] == [1, 1, 2]
    with pytest.raises(ValidationError, match="have 2 blocks, but 1 are listed"):
        stream("a", BLOCK_TOKENS + 1)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "a\nb", "\x7f", "x" * 101])
def test_a_language_whose_name_cannot_begin_a_file_name_is_refused(name: str):
    with pytest.raises(ValidationError, match="cannot name a language"):
        manifest(languages={name: language()})


def test_a_vocabulary_of_65536_takes_two_bytes_and_one_more_piece_takes_four():
    assert token_bytes_for(65_536) == 2
    assert token_bytes_for(65_537) == 4
    with pytest.raises(ValidationError, match="do not fit"):
        manifest(vocab_size=65_537)
