"""Training of the one-pass predictor of super-resolution on full-band sounds."""

from segue.training.predictor.predictor_run import PredictorTrainConfig, train_predictor

__all__ = ["PredictorTrainConfig", "train_predictor"]
