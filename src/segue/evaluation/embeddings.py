"""Embeddings by which sets of clips are compared: one vector a clip, what made it printed, cached by content."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from segue.evaluation.note_classifier import EMBEDDING_SIZE, NOTE_RATE_HZ, NOTE_SAMPLES, NoteClassifier
from segue.files import sha256_of, write_bytes
from segue.hub import model_folder
from segue.types import UserError, first_line

if TYPE_CHECKING:
    from typing_extensions import Self


class Encoder(Protocol):
    """What this module needs of a frozen audio encoder; a teacher of `segue.ssl` is one.

    Attributes:
        name: by which it was loaded.
        sample_rate_hz: of its input.
        dim: F, features of a frame.
    """

    name: str
    sample_rate_hz: int
    dim: int

    def encode(self, wave: Tensor) -> Tensor:
        """[B, T] -> [B, S, F]."""

    def fingerprint(self) -> dict:
        """Settings, and a hash of the weights under "weights"."""

    def to(self, device: str) -> Encoder:
        """Move the weights; returns itself."""


class Embedding(ABC):
    """From one clip to vectors.

    Attributes:
        name: for tables.
        sample_rate_hz: of its input; clips of a lower rate are refused, since they lack the band above their own.
        dim: E.
    """

    name: str
    sample_rate_hz: int
    dim: int

    @abstractmethod
    def card(self) -> dict:
        """Plain JSON: model, hash of its weights, layer, pooling, rate, crop; keys the cache, with the content."""

    @abstractmethod
    def embed(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """[T] at sample_rate_hz -> arrays by name, "embedding" [E] among them."""

    def to(self, device: str) -> Self:
        """Compute there; returns itself. What is no large network stays on the CPU."""
        return self


def check_crop(crop_sec: float) -> float:
    """
    Raises:
        UserError: it is not positive.
    """
    if not crop_sec > 0.0:
        raise UserError(f"--crop-seconds: a crop must be longer than 0 s; got {crop_sec}")
    return float(crop_sec)


class NoteEmbedding(Embedding):
    """The note classifier's penultimate layer, and its class probabilities ("family", "instrument", "pitch")."""

    def __init__(self, classifier: NoteClassifier) -> None:
        self.classifier = classifier
        self.name = "note-classifier"
        self.sample_rate_hz = NOTE_RATE_HZ
        self.dim = EMBEDDING_SIZE

    def card(self) -> dict:
        """See `Embedding.card`."""
        return {
            "name": self.name,
            "weights": self.classifier.sha256,
            "layer": "penultimate",
            "pooling": "none",
            "dim": self.dim,
            "sample_rate_hz": self.sample_rate_hz,
            "crop": f"first {NOTE_SAMPLES} samples, shorter clips padded with zeros",
            "preprocessing": "mean of channels, soxr HQ; loudness relative to the clip's own maximum",
        }

    def embed(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """See `Embedding.embed`."""
        found = self.classifier.predict(wave[None], NOTE_RATE_HZ)
        return {
            "embedding": found.embedding[0],
            "family": found.family_probability[0],
            "instrument": found.instrument_probability[0],
            "pitch": found.pitch_probability[0],
        }


class EncoderEmbedding(Embedding):
    """The mean over frames of an encoder's hidden layer, of the first `crop_sec` seconds of a clip."""

    def __init__(self, encoder: Encoder, crop_sec: float = 10.0) -> None:
        """Raises:
        UserError: crop_sec is not positive.
        """
        self.encoder = encoder
        self.crop_sec = check_crop(crop_sec)
        self.name = encoder.name
        self.sample_rate_hz = encoder.sample_rate_hz
        self.dim = encoder.dim

    def card(self) -> dict:
        """See `Embedding.card`."""
        return {
            **self.encoder.fingerprint(),
            "name": self.name,
            "pooling": "mean over frames",
            "dim": self.dim,
            "sample_rate_hz": self.sample_rate_hz,
            "crop": f"first {self.crop_sec:g} s, shorter clips whole",
            "preprocessing": "mean of channels, soxr HQ",
        }

    @torch.inference_mode()
    def embed(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """See `Embedding.embed`."""
        # The crop is the first seconds, not a random place: figures must not depend on a draw.
        cropped = torch.from_numpy(wave[: round(self.crop_sec * self.sample_rate_hz)].astype(np.float32))
        frames = self.encoder.encode(cropped[None])[0].cpu().double()
        return {"embedding": frames.mean(dim=0).numpy()}

    def to(self, device: str) -> Self:
        """See `Embedding.to`."""
        self.encoder.to(device)
        return self


class ClapEmbedding(Embedding):
    """CLAP's projections of sound and text, which share a space, by transformers' ClapModel.

    A clip is its first chunk (10 s for the published ones): the extractor's own choice above that is a random crop.
    """

    def __init__(self, name: str, model, extractor, tokenizer, sha256: str) -> None:
        self.name = name
        self.model = model
        self.extractor = extractor
        self.tokenizer = tokenizer
        self._sha256 = sha256
        self.sample_rate_hz = extractor.sampling_rate
        self.dim = model.config.projection_dim

    def card(self) -> dict:
        """See `Embedding.card`."""
        return {
            "name": self.name,
            "weights": self._sha256,
            "layer": "projection",
            "pooling": "the model's own",
            "dim": self.dim,
            "sample_rate_hz": self.sample_rate_hz,
            "crop": f"first {self.extractor.nb_max_samples} samples, shorter clips by '{self.extractor.padding}'",
            "preprocessing": "mean of channels, soxr HQ; the model's own log-mel",
        }

    @torch.inference_mode()
    def embed(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """See `Embedding.embed`."""
        inputs = self.extractor(
            wave[: self.extractor.nb_max_samples].astype(np.float64),
            sampling_rate=self.sample_rate_hz,
            return_tensors="pt",
        )
        # A fusion extractor marks a clip at random as longer than a chunk; none is.
        longer = torch.zeros(1, 1, dtype=torch.bool)
        device = self.model.device
        states = self.model.audio_model(
            input_features=inputs["input_features"].float().to(device), is_longer=longer.to(device)
        )
        return {"embedding": self.model.audio_projection(states.pooler_output)[0].cpu().double().numpy()}

    def to(self, device: str) -> Self:
        """See `Embedding.to`."""
        self.model.to(device)
        return self

    @torch.inference_mode()
    def embed_text(self, caption: str) -> np.ndarray:
        """One caption -> [E]."""
        # Two positions of the text model are taken up by its padding offset.
        limit = self.model.config.text_config.max_position_embeddings - 2
        words = self.tokenizer(caption, return_tensors="pt", truncation=True, max_length=limit).to(self.model.device)
        states = self.model.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        return self.model.text_projection(states.pooler_output)[0].cpu().double().numpy()


def load_clap(name: str, option: str = "--text-embedding") -> ClapEmbedding:
    """A CLAP model by hub name (NAME@REVISION for another revision) or local folder; safetensors only.

    Args:
        option: what named it, for the line of an error.

    Raises:
        UserError: it cannot be had, is no CLAP model, or lacks weights.
    """
    patterns = ("*.json", "*.txt", "model.safetensors")
    # Named patterns: nothing else of a repository is fetched, pickles least of all.
    folder = model_folder(option, name, patterns)
    config, weights = folder / "config.json", folder / "model.safetensors"
    extractor_file = folder / "preprocessor_config.json"
    # Refuse before transformers is imported, which takes seconds.
    for file in (config, extractor_file, weights):
        if not file.is_file():
            raise UserError(
                f"{option} {name}: no {file.name} there; hint: give a CLAP model saved with save_pretrained"
            )
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    try:
        if json.loads(config.read_text(encoding="utf-8")).get("model_type") != "clap":
            raise UserError(
                f"{option} {name}: no CLAP model; text-audio similarity needs one that embeds sound and text"
            )
        loaded: Any = ClapModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        # Each of the three loaders fails in its own way on a damaged folder.
        raise UserError(f"{option} {name}: cannot load it ({first_line(error)}); hint: fetch it anew") from error
    model, info = loaded
    if info["missing_keys"]:  # transformers fills them with random numbers without an error
        raise UserError(
            f"{option} {name}: its files lack {len(info['missing_keys'])} weights; hint: use a complete model"
        )
    sha256 = sha256_of([config, extractor_file, weights])
    return ClapEmbedding(name, model.eval(), extractor, tokenizer, sha256)


def cached(folder: Path, content: str, embedding: Embedding, read: Callable[[], np.ndarray]) -> dict[str, np.ndarray]:
    """`embedding.embed` of a clip, from the cache where it is there.

    The key is the clip's content and the embedding's whole card (weights, layer, pooling, rate, crop): a file that
    changes under its name, or another setting, is embedded anew.

    Args:
        folder: of the cache.
        content: hash of the sound file.
        read: gives the clip [T] at the embedding's rate; called where it is not in the cache.

    Raises:
        UserError: a damaged file in the cache, or an embedding that is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    # Card and content together are the key: neither a changed file nor another setting can meet an old entry.
    path = folder / key_of(embedding) / f"{content}.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged; hint: delete it, it is made anew") from error
    arrays = embedding.embed(read())
    # Not finite values are refused before they are cached, or they would come back for ever.
    if not all(np.isfinite(a).all() for a in arrays.values()):
        raise UserError(f"{embedding.name} gives values that are not finite for a clip (content {content})")
    write_bytes(path, save({k: np.ascontiguousarray(a) for k, a in arrays.items()}))
    return arrays


def key_of(embedding: Embedding) -> str:
    """16 hex digits of the hash of an embedding's card."""
    return hashlib.sha256(json.dumps(embedding.card(), sort_keys=True).encode()).hexdigest()[:16]


def is_teacher(embedding: Embedding, teacher: dict | None) -> bool:
    """Whether an embedding is the teacher of this fingerprint; another layer of the same weights counts as the same."""
    # By the weights alone: names and layers may differ while the network is the same.
    return teacher is not None and teacher.get("weights") == embedding.card()["weights"]
