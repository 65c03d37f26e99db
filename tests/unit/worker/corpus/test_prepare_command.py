from __future__ import annotations

import json
from pathlib import Path

import pytest

from state.data_manifest import DataManifest, Recipe
from state.errors import GemmaOrchError, UserError
from worker.corpus.prepare_command import main, parser, recipe_of

SENTENCES = ("The sea is wide.", "Rain falls on the hills.", "A boat goes out at dawn.", "They mend their nets.")


def recipe(*arguments: str) -> Recipe:
    return recipe_of(parser().parse(["--out", "x", *arguments]))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "my corpus" / "english"
    folder.mkdir(parents=True)
    lines = [json.dumps({"body": f"{number}: {sentence}"}) for number in range(8) for sentence in SENTENCES]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    return folder.parent


def test_without_options_the_recipe_is_the_default() -> None:
    assert recipe() == Recipe()


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ("--text-field body", {"text_field": "body"}),
        ("--language-field lang", {"language_field": "lang"}),
        ("--text-documents lines", {"text_documents": "lines"}),
        ("--no-nfc", {"nfc": False}),
        ("--keep-control", {"strip_control": False}),
        ("--keep-duplicates", {"deduplicate": False}),
        ("--min-characters 20", {"min_characters": 20}),
        ("--max-document-size 1MB", {"max_document_bytes": 10**6}),
        ("--max-malformed 0.2", {"max_malformed_share": 0.2}),
        ("--validation 0", {"validation_share": 0.0}),
        ("--validation 0.01 --validation konkani=0.02", {"validation_share": 0.01, "validation_shares": {"konkani": 0.02}}),
        ("--shard-size 64MiB", {"shard_bytes": 64 * 2**20}),
        ("--max-part-size 20GB", {"max_part_bytes": 20 * 10**9}),
    ],
)
def test_an_option_changes_its_part_of_the_recipe_alone(arguments: str, changed: dict[str, object]) -> None:
    assert recipe(*arguments.split()) == Recipe.model_validate(changed)


def test_every_field_of_the_recipe_has_an_option() -> None:
    given = """
        --text-field b --language-field l --text-documents lines --no-nfc --keep-control --keep-duplicates --max-malformed 1
        --min-characters 1 --max-document-size 1MB --validation 0 --validation a=0 --shard-size 1MB --max-part-size 1GB
    """
    asked = recipe(*given.split())
    assert [field for field in Recipe.model_fields if getattr(asked, field) == getattr(Recipe(), field)] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--shard-size 1B", "--shard-size: input should be greater than or equal to 2 (in bytes)"),
        ("--max-document-size 1TB", "--max-document-size: input should be less than or equal to"),
        ("--min-characters -3", "--min-characters: input should be greater than or equal to 0"),
        ("--max-malformed 2", "--max-malformed: input should be less than or equal to 1"),
        ("--max-malformed all", "--max-malformed: invalid float value: 'all'"),
        ("--text-field=", "--text-field: string should have at least 1 character"),
        ("--shard-size big", "'big' is not a size"),
        ("--validation 1", "--validation 1 is no share"),
        ("--validation some", "--validation 'some' is no share"),
        ("--validation konkani=1.5", "--validation konkani=1.5 is no share"),
        ("--validation konkani=x", "--validation is invalid: 'konkani=x'"),
        ("--validation a/b=0.1", "'a/b' cannot name a language: it has a slash"),
        ("--validation 0.1 --validation 0.2", "--validation is given as 0.1 and as 0.2"),
        ("--workers 0", "--workers: '0' is no number from 1 on"),
        ("--workers two", "--workers: 'two' is no number from 1 on"),
        ("--text-documents pages", "did you mean 'paragraphs'?"),
        ("--keep-duplicate", "did you mean '--keep-duplicates'?"),
        (
            "--shard-size 20GB",
            "--shard-size: input should be less than or equal to 8589934592",
        ),  # places within a shard are of 32 bits
    ],
)
def test_a_mistake_is_the_users_and_names_the_option(arguments: str, words: str) -> None:
    with pytest.raises(UserError) as mistake:
        recipe(*arguments.split())
    assert words in str(mistake.value)


def test_a_corpus_is_prepared_with_a_summary_for_people_and_a_manifest_for_programs(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    arguments = ["--corpus", str(corpus), "--out", str(out), "--text-field", "body", "--validation", "0", "--workers", "1"]
    assert main([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    manifest = DataManifest.from_json(said.out, "stdout")
    assert (out / "data.json").read_text() == said.out
    assert (manifest.languages["english"].num_documents, manifest.recipe.text_field) == (32, "body")
    assert "english" in said.err
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""


def test_what_cannot_be_prepared_is_explained(corpus: Path, tmp_path: Path) -> None:
    def mistake(*arguments: str) -> str:
        with pytest.raises(GemmaOrchError) as error:
            main(["--text-field", "body", "--workers", "1", *arguments])
        return str(error.value)

    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "letter.txt").write_text("mine")
    assert "nowhere" in mistake("--corpus", str(tmp_path / "nowhere"), "--out", str(tmp_path / "a"))
    assert "occupied" in mistake("--corpus", str(corpus), "--out", str(occupied))
    assert (occupied / "letter.txt").read_text() == "mine"
    out = str(tmp_path / "data")
    assert main(["--corpus", str(corpus), "--out", out, "--text-field", "body", "--workers", "1"]) == 0
    assert "another" in mistake("--corpus", str(corpus), "--out", out, "--min-characters", "5")
    assert "letter.txt" in mistake(
        "--corpus", str(corpus), "--out", str(tmp_path / "b"), "--tokenizer", str(occupied / "letter.txt")
    )
