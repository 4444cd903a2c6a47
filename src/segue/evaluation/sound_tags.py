"""Words for a sound by a local model: CLAP against a list of words, or a classifier with labels of its own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from segue.evaluation.embeddings import load_clap
from segue.hub import model_folder
from segue.types import UserError, first_line

OPTION = "--model"
# General sounds and instruments; `--words FILE` brings a list of one's own.
_GENERAL = (
    "accordion, acoustic guitar, airplane, alarm, ambience, applause, baby crying, bass drum, bass guitar, bell, bird "
    "song, boat, brass, breaking glass, breathing, bubbles, buzz, camera, car engine, car horn, cat, cello, choir, "
    "church bell, clapping, clarinet, click, clock ticking, coins, cough, cow, creak, cricket, crowd, cymbal, dishes, "
    "dog bark, door closing, door knock, double bass, drone, drum loop, drum roll, electric guitar, electric piano, "
    "engine, explosion, female voice, fire, fireworks, flute, footsteps, frog, glitch, gong, gunshot, hammer, hand "
    "drum, harp, harpsichord, helicopter, hi-hat, hiss, horse, hum, insects, keys jingling, laughter, machine, male "
    "voice, mallet, metal hit, motorcycle, music box, noise, ocean waves, organ, owl, pad, paper, percussion, phone "
    "ringing, piano, pig, plucked string, power tool, printer, radio static, rain, rattle, riser, robot, rooster, "
    "saw, saxophone, scream, scratch, sea, sheep, siren, sitar, slap, snare drum, sneeze, speech, splash, squeak, "
    "stomp, stream, string ensemble, switch, synthesizer, synth bass, synth lead, tambourine, tapping, thunder, "
    "timpani, tom, tool, traffic, train, trombone, trumpet, typing, ukulele, vibraphone, violin, vocals, water drip, "
    "whistle, whoosh, wind, wind chimes, wood hit, xylophone, zipper"
)
WORDS = tuple(_GENERAL.split(", "))
_PROMPT = "the sound of {}"
_PIECES = 3  # of a long sound, spread over it
_MOST = 3
_LEAST_SHARE = 0.08  # of the probability, for a word to be taken


class Tagger(ABC):
    """Gives words to a sound.

    Attributes:
        sample_rate_hz: of what it takes.
    """

    sample_rate_hz: int

    @abstractmethod
    def shares(self, wave: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
        """A wave [T] at sample_rate_hz -> all words, and their probabilities, which sum to one."""

    def tags(self, wave: np.ndarray) -> list[tuple[str, float]]:
        """Up to three words with their probabilities, the surest first; always one."""
        words, shares = self.shares(wave)
        order = np.argsort(-shares, kind="stable")[:_MOST]
        return [(words[i], float(shares[i])) for n, i in enumerate(order) if n == 0 or shares[i] >= _LEAST_SHARE]


class ClapTagger(Tagger):
    """Zero-shot: which of some words lies nearest in CLAP's space (Elizalde et al. 2206.04769, section 3.2)."""

    def __init__(self, name: str, words: Sequence[str] = WORDS) -> None:
        self._clap = load_clap(name, OPTION)
        self.sample_rate_hz = self._clap.sample_rate_hz
        self._words = tuple(words)
        self._texts = np.stack([_unit(self._clap.embed_text(_PROMPT.format(word))) for word in words])
        self._scale = float(self._clap.model.logit_scale_a.exp())

    def shares(self, wave: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
        """See `Tagger.shares`."""
        size = self._clap.extractor.nb_max_samples
        found = [_unit(self._clap.embed(piece)["embedding"]) for piece in _pieces(wave, size)]
        return self._words, _softmax(self._scale * self._texts @ _unit(np.mean(found, axis=0)))


class ClassifierTagger(Tagger):
    """A classifier of sounds with labels of its own, such as AST on AudioSet, through transformers."""

    def __init__(self, name: str) -> None:
        from safetensors import SafetensorError
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        folder = model_folder(OPTION, name, ("*.json", "model.safetensors"))
        try:
            loaded: Any = AutoModelForAudioClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            self._extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{OPTION} {name}: cannot load it ({first_line(error)}); hint: give a CLAP model, or a classifier of "
                "sounds with safetensors weights"
            ) from error
        model, info = loaded
        if info["missing_keys"]:  # transformers fills them with random numbers without an error
            raise UserError(
                f"{OPTION} {name}: its files lack {len(info['missing_keys'])} weights; hint: use a complete model"
            )
        self._model = model.eval()
        self.sample_rate_hz = self._extractor.sampling_rate
        labels = model.config.id2label
        self._words = tuple(labels[i].split(",")[0].lower() for i in range(len(labels)))

    @torch.inference_mode()
    def shares(self, wave: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
        """See `Tagger.shares`."""
        found = []
        for piece in _pieces(wave, 10 * self.sample_rate_hz):
            inputs = self._extractor(piece, sampling_rate=self.sample_rate_hz, return_tensors="pt")
            found.append(_softmax(self._model(**inputs).logits[0].double().numpy()))
        return self._words, np.mean(found, axis=0)


def load_tagger(name: str, words: Sequence[str] | None = None) -> Tagger:
    """A model that gives words to sounds, by hub name (NAME@REVISION for another revision) or local folder.

    Args:
        words: of which CLAP chooses; None takes `WORDS`. A classifier has labels of its own.

    Raises:
        UserError: it cannot be had, is neither CLAP nor a classifier, or has labels of its own and got words.
    """
    config = model_folder(OPTION, name, ("config.json",)) / "config.json"
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{OPTION} {name}: no readable config.json there; hint: give a hub name, or a folder of save_pretrained"
        ) from error
    if kind == "clap":
        return ClapTagger(name, WORDS if words is None else words)
    if words is not None:
        raise UserError(
            f"--words: the model {name} has labels of its own; hint: leave --words out, or take a CLAP model"
        )
    return ClassifierTagger(name)


def _pieces(wave: np.ndarray, size: int) -> list[np.ndarray]:
    """The whole of a short wave, or some pieces of a long one, evenly spread."""
    if len(wave) <= size:
        return [wave]
    starts = np.linspace(0, len(wave) - size, min(_PIECES, -(-len(wave) // size))).astype(int)
    return [wave[start : start + size] for start in starts]


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()
