"""Precision, recall, density, coverage: loops written out, and identities that are known."""

import numpy as np
import pytest

from segue.evaluation.manifold import manifold_by_clip, manifold_measures, nearest
from segue.types import UserError


def by_loops(x, y, k):
    """Naeem et al. 2020, eq. 1-6, one comparison at a time."""

    def radius(rows, i):
        return sorted(np.linalg.norm(rows[i] - rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    rx, ry = ([radius(rows, i) for i in range(len(rows))] for rows in (x, y))
    inside_y = [[np.linalg.norm(a - y[j]) < ry[j] for j in range(len(y))] for a in x]
    inside_x = [[np.linalg.norm(b - x[i]) < rx[i] for i in range(len(x))] for b in y]
    return {
        "precision": np.mean([any(row) for row in inside_y]),
        "recall": np.mean([any(row) for row in inside_x]),
        "density": np.sum(inside_y) / (k * len(x)),
        "coverage": np.mean([any(row[j] for row in inside_y) for j in range(len(y))]),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_agrees_with_loops(k):
    rng = np.random.default_rng(k)
    x, y = rng.standard_normal((17, 3)), rng.standard_normal((23, 3)) * 1.3 + 0.5
    found = {name: values.mean() for name, values in manifold_by_clip(x, y, k=k).items()}
    assert found == pytest.approx(by_loops(x, y, k), abs=1e-6)


def test_a_set_against_itself_and_against_what_is_far():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 4))
    same = {n: v.mean() for n, v in manifold_by_clip(x, x).items()}
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0
    assert same["density"] == pytest.approx(1.0)  # itself and the 4 nearer than the 5th
    assert all(v.max() == 0.0 for v in manifold_by_clip(x + 100.0, x).values())


def test_one_mode_of_two_is_precise_and_recalls_half():
    rng = np.random.default_rng(1)
    y = np.concatenate([rng.standard_normal((40, 2)), 50.0 + rng.standard_normal((40, 2))])
    found = {n: v.mean() for n, v in manifold_by_clip(rng.standard_normal((40, 2)), y).items()}
    assert found["precision"] > 0.9 and 0.4 < found["recall"] <= 0.5 and found["coverage"] <= 0.5


def test_measures_carry_k_and_intervals_and_ignore_order():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((20, 3)) * 1.5, rng.standard_normal((24, 3))
    first = {m.name: m for m in manifold_measures(x, y, k=3, draws=100)}
    other = {m.name: m for m in manifold_measures(x[::-1], y[::-1], k=3, draws=100)}
    for name, m in first.items():
        assert m.interval[0] <= m.value <= m.interval[1] and m.card["k"] == 3
        assert (m.value, m.interval) == (other[name].value, other[name].interval)
    assert (first["precision"].n, first["recall"].n) == (20, 24)


def test_nearest_names_the_reference():
    distances, index = nearest(np.array([[0.0, 3.0], [5.0, 0.0]]), np.array([[5.0, 1.0], [0.0, 0.0]]))
    assert distances.tolist() == [3.0, 1.0] and index.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros((5, 2)), np.zeros((9, 2)), "5 generated clips are too few"),
        (np.zeros((9, 2)), np.zeros((5, 2)), "5 reference clips are too few"),
        (np.zeros((9, 2)), np.zeros((9, 3)), "generated 2, reference 3"),
        (np.full((9, 2), np.inf), np.zeros((9, 2)), "not finite"),
    ],
)
def test_refuses(x, y, words):
    with pytest.raises(UserError, match=words):
        manifold_measures(x, y)
