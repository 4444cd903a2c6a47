"""Training of the autoencoder codec, its refinement against an adversary, and what is measured of a codec."""

from segue.training.codec.codec_run import CodecTrainConfig, config_for, train_codec

__all__ = ["CodecTrainConfig", "config_for", "train_codec"]
