import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ClapConfig,
    ClapModel,
    ClapTextConfig,
    ClapTextModel,
    ClapTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from segue.conditioners import load_conditioner
from segue.types import UserError

WORDS = ["<pad>", "</s>", "<unk>", "<s>", "a", "soft", "loud", "violin", "trumpet", "playing", "C", "5"]
CAPTIONS = ["a soft violin playing C 5", "loud trumpet"]


@pytest.fixture(scope="module")
def minilm():
    return load_conditioner("minilm")


def tokenizer(folder):
    """A word tokenizer that ends sentences with </s>, saved as files."""
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return fast


def clap_text_config():
    return ClapTextConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )


def save_t5_encoder(folder):
    T5EncoderModel(T5Config(vocab_size=12, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)).save_pretrained(
        folder
    )
    return T5EncoderModel.from_pretrained(folder)


def save_t5_whole(folder):
    T5ForConditionalGeneration(
        T5Config(vocab_size=12, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ).save_pretrained(folder)
    return T5EncoderModel.from_pretrained(folder)


def save_clap_text(folder):
    ClapTextModel(clap_text_config()).save_pretrained(folder)
    return ClapTextModel.from_pretrained(folder)


def save_clap_projection(folder):
    ClapTextModelWithProjection(clap_text_config()).save_pretrained(folder)
    return ClapTextModelWithProjection.from_pretrained(folder).text_model


def save_clap_whole(folder):
    audio = {"hidden_size": 16, "patch_embeds_hidden_size": 4, "depths": [1, 1], "num_attention_heads": [1, 2],
             "num_mel_bins": 16, "spec_size": 32, "num_hidden_layers": 2}  # fmt: skip
    config = ClapConfig(text_config=clap_text_config().to_dict(), audio_config=audio, projection_dim=8)
    ClapModel(config).save_pretrained(folder)
    return ClapModel.from_pretrained(folder).text_model


@pytest.mark.parametrize(
    "save", [save_t5_encoder, save_t5_whole, save_clap_text, save_clap_projection, save_clap_whole]
)
def test_towers_by_local_path_equal_a_direct_call(save, tmp_path):
    torch.manual_seed(0)
    model, words = save(tmp_path).eval(), tokenizer(tmp_path)
    ours = load_conditioner(str(tmp_path), max_tokens=6)
    tokens, mask = ours.encode(CAPTIONS)
    batch = words(CAPTIONS, padding=True, truncation=True, max_length=6, return_tensors="pt")
    direct = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    assert tokens.shape == (2, 6, ours.dim) and mask.tolist()[1] == [True] * 3 + [False] * 3
    torch.testing.assert_close(tokens[mask], direct[batch["attention_mask"].bool()])
    assert tokens[~mask].abs().max() == 0


def test_minilm_is_real(minilm):
    """Meaning, not noise: pooled captions of like sounds lie closer than of unlike ones."""
    tokens, mask = minilm.encode(["a soft violin", "a gentle fiddle", "a loud snare drum"])
    assert tokens.shape[2] == minilm.dim == 384 and tokens.dtype == torch.float32
    pooled = torch.nn.functional.normalize((tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    assert pooled[0] @ pooled[1] > pooled[0] @ pooled[2] + 0.1


def test_a_caption_does_not_depend_on_its_batch(minilm):
    alone, alone_mask = minilm.encode(CAPTIONS[1:])
    batch, batch_mask = minilm.encode(CAPTIONS)
    assert torch.equal(batch_mask[1, : alone_mask.shape[1]], alone_mask[0])
    torch.testing.assert_close(batch[1][batch_mask[1]], alone[0], atol=1e-5, rtol=1e-4)


def test_long_captions_are_cut(minilm):
    short = load_conditioner("minilm", max_tokens=8)
    tokens, mask = short.encode(["a very " * 50 + "long caption"])
    assert tokens.shape[1] == 8 and bool(mask.all())
    assert short.fingerprint() != minilm.fingerprint()


def test_what_is_no_text_encoder_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_conditioner(str(tmp_path))
    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path / "vit")
    tokenizer(tmp_path / "vit")
    with pytest.raises(UserError, match="gives no text tokens"):
        load_conditioner(str(tmp_path / "vit"))


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    save_t5_encoder(tmp_path)
    tokenizer(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if "block.1." not in k}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(UserError, match="lack"):
        load_conditioner(str(tmp_path))


def test_a_name_that_is_not_there_is_refused_without_a_hub(monkeypatch):
    # The variable HF_HUB_OFFLINE is read when huggingface_hub is imported, so it is too late to set it here.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not to be had from the hub"):
        load_conditioner("nobody/no-such-encoder")


def test_a_hub_name_is_fetched_without_pickles_or_code(monkeypatch, tmp_path):
    asked = {}

    def fetch(name, revision, allow_patterns, ignore_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    save_t5_encoder(tmp_path)
    tokenizer(tmp_path)
    assert load_conditioner("somebody/t5-tiny", 6).fingerprint()["name"] == asked["name"] == "somebody/t5-tiny"
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in asked["patterns"])


def test_pickled_weights_and_a_missing_tokenizer_are_refused(tmp_path):
    save_t5_encoder(tmp_path)
    with pytest.raises(UserError, match="no tokenizer"):
        load_conditioner(str(tmp_path))
    tokenizer(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights are not read"):
        load_conditioner(str(tmp_path))


def test_a_truncated_weight_file_is_refused(tmp_path):
    save_t5_encoder(tmp_path)
    tokenizer(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load it"):
        load_conditioner(str(tmp_path))


def test_half_precision_weights_are_computed_in_float32(tmp_path):
    T5EncoderModel(
        T5Config(vocab_size=12, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
    ).half().save_pretrained(tmp_path)
    tokenizer(tmp_path)
    ours = load_conditioner(str(tmp_path), 6)
    assert ours.encode(CAPTIONS)[0].dtype == torch.float32
    assert {p.dtype for p in ours.model.parameters()} == {torch.float32}


def test_impossible_lengths_are_refused():
    for tokens in (2, 513):  # two are the frame [CLS] ... [SEP]; 512 positions is all that the model has
        with pytest.raises(UserError, match="give 3 to 512"):
            load_conditioner("minilm", max_tokens=tokens)


def test_what_is_encoded_may_be_trained_on(minilm):
    tokens, _ = minilm.encode(CAPTIONS)
    weight = torch.ones(384, 1, requires_grad=True)
    (tokens @ weight).sum().backward()
    assert weight.grad.abs().max() > 0


def test_one_string_is_not_a_list_of_captions(minilm):
    for captions in ("a soft violin", []):
        with pytest.raises(ValueError, match="list"):
            minilm.encode(captions)
