import numpy as np

from segue_lab.study.aggregate import Band
from segue_lab.study.tables import _line


def test_a_drawn_interval_stays_where_the_measure_can_be():
    found = Band(np.array([10.0, 20.0]), np.array([0.2, 0.9]), np.array([-0.4, 0.7]), np.array([0.8, 1.6]))
    share, distance = _line(found, "examples", percent=True), _line(found, "examples", percent=False)
    assert list(share.x) == [10, 20] and np.allclose(share.y, [20, 90])
    assert np.allclose(share.low, [0, 70]) and np.allclose(share.high, [80, 100])
    assert np.allclose(distance.low, [0, 0.7]) and np.allclose(distance.high, [0.8, 1.6])
    bare = _line(Band(found.examples, found.mean, None, None), "examples", percent=True)
    assert bare.low is None and bare.high is None
