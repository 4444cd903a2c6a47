"""Log-mel statistics in closed form."""

import numpy as np
import pytest
import torch

from segue.evaluation.embeddings import cached
from segue.evaluation.log_mel import DIM, FLOOR_DB, LogMelEmbedding, log_mel_statistics
from segue.types import UserError

RATE_HZ = 16_000


def noise(seed, count=4, samples=16_384):
    return 0.1 * torch.randn(count, samples, generator=torch.Generator().manual_seed(seed))


def test_a_gain_moves_the_means_by_its_decibels_and_nothing_else():
    wave = noise(0)
    quiet, loud = log_mel_statistics(wave, RATE_HZ), log_mel_statistics(4.0 * wave, RATE_HZ)
    np.testing.assert_allclose(loud[:, :32] - quiet[:, :32], 20 * np.log10(4.0), atol=1e-5)
    np.testing.assert_allclose(loud[:, 32:], quiet[:, 32:], atol=1e-5)


def test_silence_is_the_floor_and_does_not_move():
    found = log_mel_statistics(torch.zeros(1, 16_384), RATE_HZ)
    assert found.shape == (1, DIM) and (found[0, :32] == FLOOR_DB).all() and (found[0, 32:] == 0).all()


def test_what_lies_beyond_a_clips_length_is_left_out():
    wave, length = noise(3), 8_192  # 32 frames; the window of the last one reaches 512 samples further
    loud = wave.clone()
    loud[:, length + 512 :] *= 100.0
    lengths = [length / RATE_HZ] * len(wave)
    cut = log_mel_statistics(wave, RATE_HZ, lengths)
    np.testing.assert_allclose(log_mel_statistics(loud, RATE_HZ, lengths), cut)
    assert not np.allclose(log_mel_statistics(loud, RATE_HZ), cut)
    whole = [wave.shape[1] / RATE_HZ + 1.0] * len(wave)
    np.testing.assert_allclose(log_mel_statistics(wave, RATE_HZ, whole), log_mel_statistics(wave, RATE_HZ))
    assert np.isfinite(log_mel_statistics(wave, RATE_HZ, [0.0] * len(wave))).all()


def test_clips_do_not_know_of_each_other():
    wave = noise(1)
    together = log_mel_statistics(wave, RATE_HZ)
    np.testing.assert_allclose(together[2], log_mel_statistics(wave[2:3], RATE_HZ)[0])


def test_the_embedding_takes_its_crop_and_has_a_card(tmp_path):
    embedding = LogMelEmbedding(crop_sec=1.0)
    wave = noise(2, 1, 40_000)[0].numpy()
    found = cached(tmp_path, "abc", embedding, lambda: wave)["embedding"]
    np.testing.assert_allclose(found, log_mel_statistics(torch.from_numpy(wave[None, :RATE_HZ]), RATE_HZ)[0])
    assert embedding.card()["dim"] == len(found) == 64 and embedding.card() != LogMelEmbedding(2.0).card()
    with pytest.raises(UserError, match="--crop-seconds"):
        LogMelEmbedding(0.0)
