"""Embeddings: what a card names, the key of the cache, and which teacher took part in which training."""

import numpy as np
import pytest
import torch

from segue.evaluation.embeddings import Embedding, EncoderEmbedding, NoteEmbedding, cached, is_teacher, key_of
from segue.evaluation.note_classifier import NoteClassifier
from segue.types import UserError


class Frames:
    """An encoder of two features a frame of 100 samples: mean and peak."""

    name, sample_rate_hz, dim = "frames", 1000, 2

    def __init__(self, weights="abc", layer=1):
        self.weights, self.layer, self.calls = weights, layer, 0

    def encode(self, wave):
        self.calls += 1
        frames = wave.unfold(1, 100, 100)
        return torch.stack([frames.mean(-1), frames.amax(-1)], dim=-1)

    def fingerprint(self):
        return {"name": "frames", "weights": self.weights, "layer": self.layer}


def test_pools_the_mean_of_the_first_seconds():
    wave = np.concatenate([np.full(500, 0.25), np.full(1500, 1.0)]).astype(np.float32)
    assert EncoderEmbedding(Frames(), crop_sec=1.0).embed(wave)["embedding"] == pytest.approx([0.625, 0.625])
    assert EncoderEmbedding(Frames()).embed(wave)["embedding"] == pytest.approx([0.8125, 0.8125])


def test_cache_is_keyed_by_content_model_and_preprocessing(tmp_path):
    encoder, wave = Frames(), np.full(1000, 0.5, np.float32)
    first = cached(tmp_path, "one", EncoderEmbedding(encoder), lambda: wave)
    again = cached(tmp_path, "one", EncoderEmbedding(encoder), lambda: pytest.fail("read again"))
    np.testing.assert_array_equal(first["embedding"], again["embedding"])
    assert encoder.calls == 1
    cached(tmp_path, "two", EncoderEmbedding(encoder), lambda: wave)
    cached(tmp_path, "one", EncoderEmbedding(encoder, crop_sec=1.0), lambda: wave)
    assert encoder.calls == 3
    keys = {key_of(EncoderEmbedding(e)) for e in (Frames(), Frames(weights="abd"), Frames(layer=2))}
    assert len(keys) == 3


def test_a_damaged_cache_and_broken_vectors_get_one_line(tmp_path):
    embedding = EncoderEmbedding(Frames())
    cached(tmp_path, "one", embedding, lambda: np.zeros(1000, np.float32))
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged; hint: delete it"):
        cached(tmp_path, "one", embedding, lambda: np.zeros(1000, np.float32))
    with pytest.raises(UserError, match="not finite"):
        cached(tmp_path, "two", embedding, lambda: np.full(1000, np.nan, np.float32))
    with pytest.raises(UserError, match="longer than 0"):
        EncoderEmbedding(Frames(), crop_sec=0.0)


def test_the_note_classifier_gives_its_layer_and_its_classes():
    embedding: Embedding = NoteEmbedding(NoteClassifier.load())
    wave = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    embedded = embedding.embed(wave)
    assert embedded["embedding"].shape == (embedding.dim,) and embedded["instrument"].sum() == pytest.approx(
        1, abs=1e-5
    )
    card = embedding.card()
    assert (
        card["weights"] == embedding.classifier.sha256
        and card["sample_rate_hz"] == 16000
        and "first 32768" in card["crop"]
    )


def test_another_layer_of_the_same_weights_counts_as_the_same():
    embedding = EncoderEmbedding(Frames(layer=2))
    assert is_teacher(embedding, Frames(layer=1).fingerprint())
    assert not is_teacher(embedding, Frames(weights="other").fingerprint()) and not is_teacher(embedding, None)
