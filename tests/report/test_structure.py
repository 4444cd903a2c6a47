from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from segue.report.structure import follow_groups, groups_png, similarity_png, structure_figures
from segue.types import UserError


def pixels(png):
    return np.asarray(Image.open(BytesIO(png)).convert("RGBA")).astype(int)


def table(depth=8, high=0.5):
    distance = np.abs(np.subtract.outer(range(depth), range(depth)))
    return (high * np.exp(-distance / 3) + (1 - high) * np.eye(depth)).tolist()


def stage(seen, **more):
    return {"event": "stage", "examples_seen": seen, "structure_active": False, "groups": None, **more}


GROUPS = [-1, 0, 0, 1, 1, 0, 1, -1]


def test_figures_of_a_run():
    events = [stage(n) for n in range(0, 1000, 100)]
    assert structure_figures(events) == [], "a run without checks has no picture"
    for n in (1000, 1250, 1562, 1953):
        events.append(stage(n, similarity=table(), groups=GROUPS, structure_active=n >= 1562))
    pictures = structure_figures(events)
    assert len(pictures) == 2 and all("<img" in p for p in pictures)
    assert "switched on" in pictures[1]
    events.append(stage(2000, structure_reason="off: ARI 0.71 < 0.9"))
    assert "block term off: ARI 0.71 &lt; 0.9" in structure_figures(events)[1]


def test_shallow_stacks_have_a_matrix_but_no_groups():
    assert len(structure_figures([stage(10, similarity=table(4))])) == 1


def test_pictures_repeat_and_have_the_size_asked_for():
    png = similarity_png([("one", table()), ("two", table(high=0.2))], width_px=600, height_px=280)
    assert png == similarity_png([("one", table()), ("two", table(high=0.2))], width_px=600, height_px=280)
    assert pixels(png).shape == (280, 600, 4) and pixels(png)[0, 0, 3] == 0
    drawn = groups_png([10, 20], [GROUPS, GROUPS], 20, width_px=600, height_px=280)
    assert pixels(drawn).shape == (280, 600, 4)


def test_groups_take_their_share_of_the_picture():
    def share(png, colour):
        return np.mean(np.abs(pixels(png)[..., :3] - colour).sum(-1) < 12)

    blue, orange = (0x3B, 0x82, 0xF6), (0xF5, 0x9E, 0x0B)
    png = groups_png([10, 20], [[-1, 0, 0, 0, 1, -1]] * 2)
    assert share(png, blue) == pytest.approx(3 * share(png, orange), rel=0.05)
    whole = share(groups_png([10, 20], [[0] * 6] * 2), blue)
    assert share(png, blue) == pytest.approx(whole / 2, rel=0.05), "excluded blocks stay empty"


def test_groups_keep_their_names():
    # Named by first appearance, the second check swaps both names though one block alone has moved.
    assert follow_groups([[-1, 0, 1, 1, 0, 0, -1], [-1, 0, 0, 0, 1, 1, -1]])[1] == [-1, 1, 1, 1, 0, 0, -1]
    assert follow_groups([[0, 0, 1], [0, 1, 2], [0, 0, 0]])[2] == [0, 0, 0]


def test_refuses_what_cannot_be_drawn():
    with pytest.raises(UserError, match="square tables"):
        similarity_png([("flat", [[1.0, 2.0]])])
    with pytest.raises(UserError, match="square tables"):
        similarity_png([])
    with pytest.raises(UserError, match="same blocks"):
        groups_png([1, 2], [[0, 1], [0, 1, 1]])
