from dataclasses import dataclass
from pathlib import Path

from state.data_manifest import Recipe
from worker.corpus.chunks import Chunk, ChunkReader
from worker.corpus.cleaning import Rule
from worker.corpus.encoding import Encoder, EncoderSetup, pack_of
from worker.corpus.records import Reason
from worker.corpus.shipped import sample_tokenizer_path
from worker.corpus.sources import find_sources
from worker.corpus.units import read_documents

SETTINGS = b"settings"


def chunks_of(folder: Path, *lines: str) -> list[Chunk]:
    path = folder / "corpus" / "english" / "a.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    (source,) = find_sources([folder / "corpus"], Recipe()).files
    return list(ChunkReader(source, Recipe()).chunks())


def setup(recipe: Recipe | None = None) -> EncoderSetup:
    return EncoderSetup(recipe or Recipe(), sample_tokenizer_path())


def test_a_unit_counts_what_each_chunk_had_and_keeps_three_examples_of_each_reason(tmp_path: Path):
    chunks = chunks_of(tmp_path, '{"text": "one"}', *["{broken"] * 5, '{"text": "x"}', '{"text": "a\\u0007bc"}')
    encoder = Encoder(setup(Recipe(min_characters=3)))
    header = encoder.encode(pack_of(chunks, 10, tmp_path, SETTINGS)).header
    (portion,) = header.portions
    assert (portion.num_records, header.num_documents) == (8, 2)
    assert portion.skipped == {Reason.NOT_JSON: 5}
    assert portion.dropped == {"english": {Rule.SHORT: 1}}
    assert portion.changed == {"english": {Rule.CONTROL: 1}}
    assert [example.record for example in portion.examples[Reason.NOT_JSON]] == [2, 3, 4]


def test_a_unit_may_hold_more_files_than_16_bits_count(tmp_path: Path):
    (last,) = chunks_of(tmp_path, '{"text": "the last file of all"}')
    empty = [Chunk(last.source, 0, 1, b"")] * 66_000
    pack = pack_of([*empty, last], 10, tmp_path, SETTINGS)
    header = Encoder(setup()).encode(pack).header
    assert [portion.num_records for portion in header.portions[-2:]] == [0, 1]
    assert read_documents(pack.unit)["portion"].tolist() == [66_000]


def test_a_units_name_stands_for_content_language_format_place_and_settings(tmp_path: Path):
    (chunk,) = chunks_of(tmp_path, '{"text": "one"}')

    @dataclass(frozen=True)
    class Elsewhere:
        chunk: Chunk
        settings: bytes = SETTINGS

    source = chunk.source
    moved = Chunk(type(source)(5, "x", tmp_path / "elsewhere", source.language, source.kind), 0, 1, chunk.data)
    other_language = Chunk(type(source)(0, source.name, source.path, "hindi", source.kind), 0, 1, chunk.data)
    further_down = Chunk(source, 0, 7, chunk.data)
    other_text = Chunk(source, 0, 1, b'{"text": "two"}\n')
    name = pack_of([chunk], 1, tmp_path, SETTINGS).unit
    assert pack_of([moved], 1, tmp_path, SETTINGS).unit == name
    others = [Elsewhere(other_language), Elsewhere(further_down), Elsewhere(other_text), Elsewhere(chunk, b"other")]
    names = {pack_of([other.chunk], 1, tmp_path, other.settings).unit for other in others}
    assert len(names | {name}) == 5


def test_settings_that_change_no_unit_do_not_make_new_ones():
    plain = setup().digest("a" * 64)
    assert setup(Recipe(shard_bytes=4096, max_part_bytes=10**6, deduplicate=False)).digest("a" * 64) == plain
    assert setup(Recipe(nfc=False)).digest("a" * 64) != plain
    assert setup().digest("b" * 64) != plain
