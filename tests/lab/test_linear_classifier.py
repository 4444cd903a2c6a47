"""The linear classifier, on classes that are known to part."""

import numpy as np
import pytest

from segue.types import UserError
from segue_lab.linear_classifier import fit_linear_classifier


@pytest.mark.parametrize("classes", (2, 3, 5))
def test_it_tells_classes_apart_and_guesses_where_there_are_none(classes):
    draw = np.random.default_rng(0)
    centres = 4.0 * draw.standard_normal((classes, 64))
    labels = np.arange(60 * classes) % classes
    names = [f"class {k}" for k in labels]
    features = 50.0 + centres[labels] + draw.standard_normal((len(labels), 64))
    classifier = fit_linear_classifier(features, names)
    fresh = 50.0 + centres[labels] + draw.standard_normal((len(labels), 64))
    assert classifier.predict(fresh) == names
    shuffled = fit_linear_classifier(draw.standard_normal((len(labels), 64)), names)
    right = np.mean(np.array(shuffled.predict(draw.standard_normal((len(labels), 64)))) == names)
    assert abs(right - 1 / classes) < 4 * np.sqrt(0.25 / len(labels))


def test_a_classifier_of_one_class_is_refused():
    with pytest.raises(UserError, match="two classes at least, found organ"):
        fit_linear_classifier(np.zeros((4, 64)), ["organ"] * 4)
