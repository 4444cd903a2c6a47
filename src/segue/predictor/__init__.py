"""The one-pass predictor of super-resolution: levels from a small network, fine structure from the low band itself."""

from segue.predictor.files import load_predictor, predictor_hash, save_predictor
from segue.predictor.guess import Guesser, find_predictor
from segue.predictor.level import level_gain
from segue.predictor.network import PredictorConfig
from segue.predictor.predictor import BandPredictor, Made
from segue.predictor.resolver import Predictor, shipped_for

__all__ = [
    "BandPredictor",
    "Guesser",
    "Made",
    "Predictor",
    "PredictorConfig",
    "find_predictor",
    "level_gain",
    "load_predictor",
    "predictor_hash",
    "save_predictor",
    "shipped_for",
]
