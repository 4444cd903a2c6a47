"""A folder as a page is given it: a run of a tiny model on the recordings, and the recordings themselves."""

import shutil

import pytest

TINY = ["model.preset=dit-tiny", "train.total_examples=24", "train.batch_size=4", "train.validation_clips=2",
        "train.checkpoint_every=12", "train.samples=2"]  # fmt: skip


@pytest.fixture(scope="module")
def served(cache, recordings, tmp_path_factory):
    """A folder with a finished run, the cache that it was trained on, and sounds."""
    from segue.recipes import load_recipe
    from segue.training.config import override
    from segue.workflows.train_run import run_training

    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(cache, folder / "cache")
    shutil.copytree(recordings, folder / "sounds")
    config = override(load_recipe("static-uniform"), TINY)
    run_training(config, folder / "cache", folder / "first", device="cpu", quiet=True)
    return folder
