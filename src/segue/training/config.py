"""What a run is: frozen dataclasses, JSON both ways, and overrides by dotted name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, get_type_hints

from segue.models.lora import LoraConfig
from segue.process.timesteps import distribution_from_json
from segue.stage.policy import Policy
from segue.tasks.degradation import DegradationConfig
from segue.training import older
from segue.types import UserError

# A field that came later is written where it is set: the config of a run that does without it, and so the name that a
# study gives the run, stays what it was.
LATER = {"later": True}
OPTIMIZERS = ("adamw", "adamw-8bit", "muon", "schedule-free")
TASKS = ("generation", "super-resolution")
SHARDINGS = ("none", "fsdp2")
PRECISIONS = ("auto", "fp32", "bf16")
OBJECTIVES = ("auto", "velocity", "min-snr", "uncertainty")


@dataclass(frozen=True)
class ModelConfig:
    """The backbone.

    Attributes:
        preset: a size of models/presets.py.
        patch_frames: latent frames to a token; 0 = as many as give about 16 tokens a second.
        predicts: "velocity", "clean", or "auto": clean where a token is wider than the model (a velocity then cannot be
            fitted, since the noise in it does not pass through the model's width).
        gradient_checkpointing: recompute activations in backward.
        attention_window: tokens to each side that a token attends to; 0 = all.
        value_residual: each block's attention also gets the first block's values (arXiv 2410.17897).
        pretrained: folder or hub name of a diffusers pipeline whose model is trained on; "" = one of our own, anew. Of
            the settings above, gradient_checkpointing alone applies to it.
    """

    preset: str = "dit-3m"
    patch_frames: int = 0
    predicts: str = "auto"
    gradient_checkpointing: bool = False
    attention_window: int = field(default=0, metadata=LATER)
    value_residual: bool = field(default=False, metadata=LATER)
    pretrained: str = field(default="", metadata=LATER)


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser, its schedule, clipping and EMA.

    Attributes:
        kind: "adamw"; "adamw-8bit" (moments of 8 bits, by bitsandbytes: a quarter of their memory); "muon" (on the
            matrices of the blocks, AdamW on the rest); "schedule-free" (AdamW whose averaged weights take the place of
            a decaying rate, and of the EMA).
        learning_rate: peak rate; 0 = 2e-3 up to a width of 160, and falling as 160 / width beyond (training/build.py).
        warmup_fraction: share of the run over which the rate rises linearly.
        decay: "constant" or "linear" (over the last decay_fraction, to zero); schedule-free runs have none.
        decay_fraction: share of the run that a linear decay takes.
        weight_decay: decoupled; on matrices only, not on biases, norms and the null token.
        beta1, beta2: Adam's averaging constants.
        grad_clip: largest global gradient norm; 0 = no clipping.
        ema_decay: of the averaged weights per step; young runs use (1 + n) / (10 + n) while that is smaller.
        muon_rate: of kind "muon", its rate over the learning rate, which the other weights go on having.
        muon_weight_decay: of kind "muon", decoupled weight decay of its matrices; below 0 = optim.weight_decay.
        pull: of a fine-tuning run, strength of the pull of all trained weights to where they began, in units of weight
            decay (L2-SP); 0 = none. It keeps what the start knew, at the price of adapting less.
    """

    learning_rate: float = 0.0
    warmup_fraction: float = 0.05
    decay: str = "linear"
    decay_fraction: float = 0.3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    kind: str = field(default="adamw", metadata=LATER)
    muon_rate: float = field(default=1.0, metadata=LATER)
    muon_weight_decay: float = field(default=-1.0, metadata=LATER)
    pull: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        if not self.pull >= 0:
            raise UserError(f"optim.pull is {self.pull}; give 0 or a positive number, such as 0.1")
        if not self.muon_rate > 0:
            raise UserError(f"optim.muon_rate is {self.muon_rate}; give a positive number, such as 4")
        if self.kind not in OPTIMIZERS:
            raise UserError(f"optim.kind is '{self.kind}'; choose one of {', '.join(OPTIMIZERS)}")
        if self.decay not in ("constant", "linear"):
            raise UserError(f"optim.decay is '{self.decay}'; use 'constant' or 'linear'")


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and bookkeeping of a run. Progress is counted in examples seen, over all ranks.

    Attributes:
        task: "generation" (from captions) or "super-resolution" (from what the section degradation leaves of a clip).
        start_from: a run, checkpoint or model.safetensors whose averaged weights this run begins with; "" = anew.
        total_examples: length of the run.
        batch_size: examples of one optimiser step, over all ranks.
        accumulation: parts that a rank computes its share of a batch in; changes memory, not the result.
        precision: "fp32", "bf16" (autocast over float32 weights), or "auto": bf16 where it is faster and the losses
            agree (training/precision.py), else fp32.
        seed: of weights, order, noise, times and dropped captions.
        objective: what the squared error is measured in: "velocity", "min-snr" (the clean sample, under min-SNR-5
            weights), "uncertainty" (EDM2's learned weight of each noise level), or "auto": as the model
            predicts.
        contrastive: weight of contrastive flow matching (arXiv 2506.05350): predictions are pushed away from what
            another clip of the batch would ask for; 0 = off, 0.05 is the paper's.
        condition_dropout: share of captions, or of low bands, replaced by the null, for classifier-free guidance.
        known_share: share of the examples of which a stretch is given and the rest generated: the start, the end, both,
            or the middle (tasks/known_parts.py). The model then continues and repairs recordings; 0 = none.
        log_every, validate_every, checkpoint_every: in examples; 0 = a share of the run (1/100, 1/10, 1/4).
        samples: sounds from fixed held-out captions and seeds, each time and at the end; 0 = none (--samples).
        sample_every: examples between them; 0 = with every checkpoint.
        seconds: length of the crops that are trained on, taken anywhere from the sounds of the cache; 0 = that of its
            rows. What is held out is measured by whole rows.
        buckets: make batches of sounds of about one length, each as long as its sounds, so that at most a tenth of its
            tokens are padding: for sets of many lengths.
        validation_clips: held-out clips of the fixed-t validation.
        keep_last: checkpoints that stay on disk.
        tensorboard: write TensorBoard files into the run folder, too (--tracker tensorboard).
        wandb: log to Weights & Biases, too (--tracker wandb); WANDB_MODE=offline keeps it on this machine.
        sharding: "none" (every process holds the whole model) or "fsdp2" (weights, gradients, moments and averaged
            weights are split over the processes; training/sharding.py).
        compile: compile the model's blocks by torch.compile, which takes minutes at the start; not measured on a GPU,
            and hardly faster on a CPU.
        patience: bad steps in a row (training/guards.py) after which the run stops; each of them is skipped.
        spike: robust standard deviations above the last steps' loss at which a step is bad; 0 = no step is.
    """

    task: str = field(default="generation", metadata=LATER)
    start_from: str = field(default="", metadata=LATER)
    total_examples: int = 50_000
    batch_size: int = 32
    accumulation: int = 1
    precision: str = "auto"
    seed: int = 0
    objective: str = "auto"
    contrastive: float = field(default=0.0, metadata=LATER)
    condition_dropout: float = 0.1
    known_share: float = field(default=0.0, metadata=LATER)
    log_every: int = 0
    validate_every: int = 0
    checkpoint_every: int = 0
    validation_clips: int = 64
    keep_last: int = 2
    tensorboard: bool = False
    sharding: str = field(default="none", metadata=LATER)
    samples: int = field(default=4, metadata=LATER)
    sample_every: int = field(default=0, metadata=LATER)
    seconds: float = field(default=0.0, metadata=LATER)
    buckets: bool = field(default=False, metadata=LATER)
    compile: bool = field(default=False, metadata=LATER)
    patience: int = field(default=5, metadata=LATER)
    spike: float = field(default=10.0, metadata=LATER)
    wandb: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"train.precision is '{self.precision}'; use one of {', '.join(PRECISIONS)}")
        if self.task not in TASKS:
            raise UserError(f"train.task is '{self.task}'; use one of {', '.join(TASKS)}")
        if self.objective not in OBJECTIVES:
            raise UserError(f"train.objective is '{self.objective}'; use one of {', '.join(OBJECTIVES)}")
        if self.sharding not in SHARDINGS:
            raise UserError(f"train.sharding is '{self.sharding}'; use one of {', '.join(SHARDINGS)}")
        for name in ("total_examples", "batch_size", "accumulation", "keep_last", "validation_clips", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; give at least 1")
        if not self.spike >= 0:
            raise UserError(f"train.spike is {self.spike}; give 0 or a positive number, such as 10")
        if not 0 <= self.contrastive < 1:
            raise UserError(f"train.contrastive is {self.contrastive}; give 0 (off) or a share below 1, such as 0.05")
        if self.seconds < 0:
            raise UserError(f"train.seconds is {self.seconds}; give a length in seconds, or 0 for that of the cache")
        if not 0 <= self.condition_dropout < 1:
            raise UserError(f"train.condition_dropout is {self.condition_dropout}; give a share in [0, 1)")
        if not 0 <= self.known_share <= 1:
            raise UserError(f"train.known_share is {self.known_share}; give a share from 0 to 1, such as 0.5")


@dataclass(frozen=True)
class Intervals:
    """Examples between log lines, validations, checkpoints and sounds."""

    log: int
    validation: int
    checkpoint: int
    sounds: int


def intervals(train: TrainConfig) -> Intervals:
    """The run's intervals, with the defaults filled in."""
    checkpoint = train.checkpoint_every or max(1, train.total_examples // 4)
    return Intervals(
        log=train.log_every or max(1, train.total_examples // 100),
        validation=train.validate_every or max(1, train.total_examples // 10),
        checkpoint=checkpoint,
        sounds=train.sample_every or checkpoint,
    )


def crossed(seen: int, before: int, every: int) -> bool:
    """True when a multiple of `every` lies in (before, seen]."""
    return seen // every > before // every


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run, beside its data."""

    recipe: str
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    policy: Policy = field(default_factory=Policy)
    degradation: DegradationConfig = field(default_factory=DegradationConfig, metadata=LATER)
    lora: LoraConfig = field(default_factory=LoraConfig, metadata=LATER)

    @property
    def holds_bfloat16(self) -> bool:
        """Whether frozen weights are held in bfloat16."""
        return self.lora.rank > 0 and self.train.precision == "bf16"


def to_json(config: Any) -> dict:
    """A config as plain JSON, nested as its dataclasses are; a timestep distribution writes itself."""
    return {
        f.name: value.to_json() if hasattr(value, "to_json") else to_json(value) if is_dataclass(value) else value
        for f in fields(config)
        for value in [getattr(config, f.name)]
        if not (f.metadata.get("later") and value == _default(f))
    }


def _default(f: Field) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def from_json(data: dict) -> RunConfig:
    """The inverse of `to_json`, for configs of older versions, too.

    Raises:
        UserError: an unknown or missing key, or a setting that is none any more at another value than it had.
    """
    try:
        # Older names end here: what follows knows today's alone.
        policy = older.current_policy(data["policy"])
        kinds = get_type_hints(Policy)
        parts = {name: kinds[name](**value) for name, value in policy.items() if name != "static_timesteps"}
        return RunConfig(
            recipe=older.RECIPES.get(data["recipe"], data["recipe"]),
            model=ModelConfig(**data["model"]),
            optim=OptimConfig(**data["optim"]),
            train=TrainConfig(**data["train"]),
            policy=Policy(static_timesteps=distribution_from_json(policy["static_timesteps"]), **parts),
            degradation=DegradationConfig.from_json(data.get("degradation", {})),
            lora=LoraConfig(**data.get("lora", {})),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"this run's config was written by another version of segue ({error}); train it anew"
        ) from error


def _short_for(name: str, known: Iterable[str]) -> list[str]:
    """Settings whose words begin with the letters of `name`: optim.lr is short for optim.learning_rate."""
    section, _, letters = name.partition(".")
    pairs = ((full, full.partition(".")) for full in known)
    return [
        full for full, (s, _, words) in pairs if s == section and "".join(w[:1] for w in words.split("_")) == letters
    ]


def override(config: RunConfig, changes: Sequence[str]) -> RunConfig:
    """The config with `section.name=value` changes applied; names of older versions are understood.

    Raises:
        UserError: an unknown name (the nearest known one is offered), or a value of the wrong type.
    """
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set {change}: write it as section.name=value, for example optim.learning_rate=3e-4")
        name = older.current_name(name)
        known = {f"{s}.{f.name}": (s, f.name) for s, part in _sections(config).items() for f in fields(part)}
        if name not in known:
            near = _short_for(name, known) or difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            raise UserError(f"--set {name}: no such setting" + (f"; did you mean {near[0]}?" if near else ""))
        section, key = known[name]
        part = _sections(config)[section]
        # A replaced dataclass runs its checks anew, so that a bad value is refused here.
        changed = replace(part, **{key: _parse(name, text, get_type_hints(type(part))[key])})
        if hasattr(config, section):
            config = replace(config, **{section: changed})
        else:
            config = replace(config, policy=replace(config.policy, **{section: changed}))
    return config


def _sections(config: RunConfig) -> dict[str, Any]:
    """What `--set section.name` reaches: the run's parts, and the policy's by their own names."""
    policy = {f.name: getattr(config.policy, f.name) for f in fields(config.policy) if f.name != "static_timesteps"}
    own = {name: getattr(config, name) for name in ("model", "optim", "train", "degradation", "lora")}
    return own | policy


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _parse(name: str, text: str, kind: type) -> Any:
    """Text to the type of a field."""
    try:
        if kind == tuple[float, ...]:
            return tuple(_finite(part) for part in text.split(","))
        if kind is float:
            return _finite(text)
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        # 1e6 is a whole number as well; what is none fails in int().
        if kind is int:
            return int(float(text)) if float(text).is_integer() else int(text)
        return kind(text)
    except (ValueError, KeyError, OverflowError) as error:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "numbers with commas")
        raise UserError(f"--set {name}={text}: give {wanted}") from error
