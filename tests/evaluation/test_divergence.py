"""KL by its direction, inception score, text-audio similarity: closed forms and refusals."""

import numpy as np
import pytest
import scipy.stats

from segue.evaluation.divergence import inception_score, kl_by_pair, paired_kl
from segue.evaluation.text_similarity import similarity_by_clip, text_audio_similarity
from segue.types import UserError


def random_rows(n, classes, seed):
    return np.random.default_rng(seed).dirichlet(np.ones(classes), n)


def test_directions_of_a_known_pair():
    generated, reference = np.array([[0.5, 0.5]] * 2), np.array([[0.9, 0.1]] * 2)
    forward = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    backward = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    options = {"floor": 0.0, "draws": 20}
    first = paired_kl(generated, reference, direction="generated||reference", **options)
    second = paired_kl(generated, reference, direction="reference||generated", **options)
    assert first.value == pytest.approx(forward, abs=1e-12) and second.value == pytest.approx(backward, abs=1e-12)
    assert first.name == "KL(generated||reference)" and second.card["direction"] == "reference||generated"


def test_agrees_with_scipy():
    p, q = random_rows(12, 9, 0), random_rows(12, 9, 1)
    expected = [scipy.stats.entropy(a, b) for a, b in zip(p, q)]
    np.testing.assert_allclose(kl_by_pair(p, q), expected, atol=1e-6)
    assert kl_by_pair(p, p).max() == 0.0


def test_zeros_count_for_nothing_on_the_left_and_are_refused_on_the_right():
    p, q = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
    assert kl_by_pair(p, q)[0] == pytest.approx(np.log(2))
    with pytest.raises(UserError, match="infinite"):
        kl_by_pair(q, p)
    assert np.isfinite(kl_by_pair(q, p, floor=1e-6)).all()


def test_inception_score_from_one_to_the_number_of_classes():
    assert inception_score(np.eye(8), draws=20).value == pytest.approx(8.0)
    assert inception_score(np.full((5, 4), 0.25), draws=20).value == pytest.approx(1.0)
    rows = random_rows(30, 5, 2)
    marginal = rows.mean(axis=0)
    expected = np.exp(np.mean([scipy.stats.entropy(row, marginal) for row in rows]))
    found = inception_score(rows, draws=50)
    assert found.value == pytest.approx(expected, abs=1e-6)
    again = inception_score(rows[::-1], draws=50)
    assert (again.value, again.interval) == (pytest.approx(found.value), pytest.approx(found.interval))


def test_the_interval_of_the_inception_score_holds_it():
    """Twenty clips, each of a class of its own: resampled, some are missing, and every draw scores lower."""
    found = inception_score(np.eye(20), draws=200)
    assert found.value == pytest.approx(20.0) and found.interval[0] < found.value < found.interval[1]
    assert "shifted" in found.card["interval"]


def test_similarity_is_the_cosine_of_own_captions():
    rng = np.random.default_rng(3)
    sounds, texts = rng.standard_normal((6, 4)), rng.standard_normal((6, 4))
    cosines = np.array([[s @ t / np.linalg.norm(s) / np.linalg.norm(t) for t in texts] for s in sounds])
    found = text_audio_similarity(sounds, 3.0 * texts, draws=50)
    assert found.value == pytest.approx(np.diag(cosines).mean(), abs=1e-6)
    assert found.card["mismatched"] == pytest.approx((cosines.sum() - np.trace(cosines)) / 30, abs=1e-6)
    np.testing.assert_allclose(similarity_by_clip(sounds, -sounds), -1.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: paired_kl(np.eye(2), np.eye(2), direction="forward"), "directions"),
        (lambda: kl_by_pair(np.eye(2), np.eye(3)), "same classes"),
        (lambda: kl_by_pair(np.ones((2, 2)), np.eye(2)), "sum to 1"),
        (lambda: kl_by_pair(np.full((2, 2), np.nan), np.eye(2)), "finite"),
        (lambda: inception_score(np.eye(3)[:1]), "at least 2"),
        (lambda: text_audio_similarity(np.eye(3), np.eye(3)[:2]), "caption a clip"),
        (lambda: similarity_by_clip(np.zeros((2, 3)), np.ones((2, 3))), "no cosine"),
        (lambda: text_audio_similarity(np.ones((1, 3)), np.ones((1, 3))), "at least 2"),
    ],
)
def test_refuses(make, words):
    with pytest.raises(UserError, match=words):
        make()
