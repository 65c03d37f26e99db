"""What an export writes is opened by those for whom it is meant, and computes what our model computes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from torch import Tensor

from state import crash_points
from state.architecture import Architecture, ModelSpec, resolve_architecture
from state.errors import DataError, UserError
from tests.repository import ROOT
from worker.export.formats import MARKER, ExportFormat, export_checkpoint
from worker.model.gemma3 import Gemma3
from worker.model.weights import initial_state

GOLDEN = ROOT / "tests" / "golden" / "gemma_pytorch_tiny.json"
SENTENCES = [
    "The river was wide and slow, and the boats were tied to old trees.",
    "हमारे गाँव में हर रविवार को बाज़ार लगता है।",
    "आमच्या गांवांत दर आयतारा बाजार भरता.",
    "  two  spaces,\n\nlines\tand 1234 digits ",
    "An unseen sign: \U0001f600 and a run: =========",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES[:3] * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        num_threads=1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def pieces(tokenizer: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))


@pytest.fixture(scope="module")
def architecture(pieces: sentencepiece.SentencePieceProcessor) -> Architecture:
    return resolve_architecture(ModelSpec(size="tiny", rope_global_scaling=8.0), pieces.get_piece_size())


@pytest.fixture(scope="module")
def weights(architecture: Architecture) -> dict[str, Tensor]:
    return {
        name: tensor + 0.1 if tensor.dim() == 1 else 4.0 * tensor for name, tensor in initial_state(architecture, seed=5).items()
    }


@pytest.fixture(scope="module")
def our_logits(architecture: Architecture, weights: dict[str, Tensor]) -> Tensor:
    model = Gemma3(architecture)
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.logits(token_ids(architecture))


def token_ids(architecture: Architecture) -> Tensor:
    return torch.randint(1, architecture.vocab_size, (2, 50), generator=torch.Generator().manual_seed(6))


def test_transformers_opens_the_hf_folder_and_computes_our_logits(
    architecture: Architecture, weights: dict[str, Tensor], tokenizer: Path, our_logits: Tensor, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.HF)

    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        logits = model(token_ids(architecture)).logits
    torch.testing.assert_close(logits, our_logits, atol=1e-4, rtol=0)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (2, 1, 0)
    assert model.generation_config.eos_token_id == 1


def test_the_tokenizer_of_the_hf_folder_gives_the_ids_that_the_model_was_trained_with(
    architecture: Architecture,
    weights: dict[str, Tensor],
    tokenizer: Path,
    pieces: sentencepiece.SentencePieceProcessor,
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.HF)

    opened = AutoTokenizer.from_pretrained(tmp_path / "out")
    for sentence in SENTENCES:
        assert opened(sentence)["input_ids"] == [pieces.bos_id(), *pieces.encode(sentence)]
        assert opened(sentence, add_special_tokens=False)["input_ids"] == pieces.encode(sentence)
        assert opened.decode(pieces.encode(sentence)) == sentence
    assert (opened.bos_token_id, opened.eos_token_id, opened.pad_token_id, opened.unk_token_id) == (2, 1, 0, 3)
    assert len(opened) == architecture.vocab_size


def test_the_official_loader_finds_every_name_that_it_knows(tokenizer: Path, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    config = golden["config"]
    architecture = Architecture(
        vocab_size=sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).get_piece_size(),
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        sliding_window=config["sliding_window_size"],
        query_scale_dim=config["head_dim"],
        max_position=config["max_position_embeddings"],
    )
    official = {name: list(shape) for name, shape in golden["state_dict"].items() if not name.endswith("_freqs_cis")}
    official["embedder.weight"] = [architecture.vocab_size, architecture.hidden_size]

    export_checkpoint(initial_state(architecture, seed=0), architecture, tokenizer, tmp_path / "out", ExportFormat.GEMMA_PYTORCH)

    # These arguments are those of the official load_weights.
    state = torch.load(tmp_path / "out" / "model.ckpt", mmap=True, weights_only=True)["model_state_dict"]
    assert {name: list(tensor.shape) for name, tensor in state.items()} == official
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written.keys() == config.keys()
    changed = {name for name in config if written[name] != config[name]}
    # A scalar that is none means the head width, which is what ours says.
    assert changed == {"vocab_size", "tokenizer", "query_pre_attn_scalar"}


def test_a_safetensors_export_holds_the_same_bits_and_its_architecture(
    architecture: Architecture, weights: dict[str, Tensor], tokenizer: Path, tmp_path: Path
) -> None:
    export = export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.SAFETENSORS)

    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert Architecture.from_json((tmp_path / "out" / "architecture.json").read_bytes(), "export") == architecture
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer.read_bytes()
    assert set(export.files) == {"model.safetensors", "architecture.json", "tokenizer.model", MARKER}


def test_an_earlier_export_is_replaced_and_leaves_nothing_behind(
    architecture: Architecture, weights: dict[str, Tensor], tokenizer: Path, tmp_path: Path
) -> None:
    export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.GEMMA_PYTORCH)
    export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.SAFETENSORS)

    assert not (tmp_path / "out" / "model.ckpt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("form", ExportFormat)
def test_whoever_may_read_one_file_of_an_export_may_read_all(
    architecture: Architecture, weights: dict[str, Tensor], tokenizer: Path, tmp_path: Path, form: ExportFormat
) -> None:
    (tmp_path / "plain").touch()
    export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", form)
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize(("moment", "form"), [(0, ExportFormat.SAFETENSORS), (1, ExportFormat.HF)])
def test_an_interrupt_while_an_export_is_replaced_leaves_one_whole_export(
    architecture: Architecture, weights: dict[str, Tensor], tokenizer: Path, tmp_path: Path, moment: int, form: ExportFormat
) -> None:
    export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.SAFETENSORS)
    renames = iter(range(10))

    def interrupt(kind: str, what: str) -> None:
        if kind == "rename" and next(renames) == moment:
            raise KeyboardInterrupt

    crash_points.observe(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.HF)
    finally:
        crash_points.observe(None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((tmp_path / "out" / MARKER).read_text())["format"] == form.value


def test_a_folder_with_other_files_is_left_alone(
    architecture: Architecture, weights: dict[str, Tensor], tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(UserError, match="holds files that no export wrote"):
        export_checkpoint(weights, architecture, tokenizer, tmp_path, ExportFormat.SAFETENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_left_alone(
    architecture: Architecture, weights: dict[str, Tensor], tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("years of work")

    with pytest.raises(UserError, match="is a file"):
        export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.SAFETENSORS)


def test_an_empty_folder_may_be_used(
    architecture: Architecture, weights: dict[str, Tensor], tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.SAFETENSORS)

    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    architecture = resolve_architecture(ModelSpec(), 9_999)

    with pytest.raises(UserError, match=r"pieces, the weights have 9999"):
        export_checkpoint(initial_state(architecture, 0), architecture, tokenizer, tmp_path / "out", ExportFormat.HF)


def test_a_file_that_is_no_tokenizer_is_refused_and_nothing_is_written(
    architecture: Architecture, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "x.model").write_bytes(b"not a model")

    with pytest.raises(UserError, match="cannot be read as a SentencePiece model"):
        export_checkpoint(weights, architecture, tmp_path / "x.model", tmp_path / "out", ExportFormat.HF)
    assert [path.name for path in tmp_path.iterdir()] == ["x.model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), r"1 of 68 weights are missing, 'model\.norm\.weight'"),
        (lambda weights: weights.update(extra=torch.ones(1)), "1 weights belong to no part of the model, 'extra'"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(3)}), r"has the shape \(3,\)"),
    ],
)
def test_weights_of_another_model_are_refused(
    architecture: Architecture,
    weights: dict[str, Tensor],
    tokenizer: Path,
    tmp_path: Path,
    change: object,
    message: str,
) -> None:
    assert callable(change)
    wrong = dict(weights)
    change(wrong)

    with pytest.raises(DataError, match=message):
        export_checkpoint(wrong, architecture, tokenizer, tmp_path / "out", ExportFormat.HF)


def test_a_width_that_the_readers_refuse_is_refused_before_they_do(
    pieces: sentencepiece.SentencePieceProcessor, tokenizer: Path, tmp_path: Path
) -> None:
    architecture = resolve_architecture(ModelSpec(num_heads=6), pieces.get_piece_size())
    weights = initial_state(architecture, 0)

    with pytest.raises(UserError, match="hidden_size 128 is not a multiple of num_heads 6"):
        export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.HF)
    export_checkpoint(weights, architecture, tokenizer, tmp_path / "out", ExportFormat.SAFETENSORS)


def test_scaled_rope_comes_with_a_note_for_the_official_implementation(
    architecture: Architecture, weights: dict[str, Tensor], tokenizer: Path, tmp_path: Path
) -> None:
    official = export_checkpoint(weights, architecture, tokenizer, tmp_path / "a", ExportFormat.GEMMA_PYTORCH)
    plain = export_checkpoint(weights, architecture, tokenizer, tmp_path / "b", ExportFormat.SAFETENSORS)

    assert "ignores rope_scaling_factor 8" in official.notes[0]
    assert plain.notes == ()
