"""What a study is: variants x seeds on one data set, read from a small JSON file, and the hash that names each run."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import reduce
from math import ceil, gcd, lcm
from pathlib import Path

from segue.recipes import load_recipe
from segue.training.config import RunConfig, from_json, override, to_json
from segue.training.older import first_json
from segue.types import UserError

MOST_SNAPSHOTS = 64


@dataclass(frozen=True)
class Variant:
    """One column of a study: a recipe, perhaps with changes, under a name of its own.

    Attributes:
        name: how tables call it.
        recipe: a name of `segue recipes`.
        set: overrides "section.name=value", applied after the study's own.
        examples: length of its runs, where another than the study's: schedules then end there, too.
        seeds: those of the study's seeds that it runs with; () = all.
    """

    name: str
    recipe: str
    set: tuple[str, ...] = ()
    examples: int = 0
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class DataSource:
    """Where the latents come from: a rendered demo set, or a cache that is there already.

    Attributes:
        demo_clips: clips of the demo set, rendered and encoded inside the study's folder; 0 = `cache` is given.
        cache: path of a finished cache.
        manifest: with `cache`: the data set it was encoded from; Frechet distances are then taken to real clips rather
            than to decoded latents.
        class_field: with `cache`: a field of its manifest; a linear classifier then says whether generated clips are
            of the class that was asked for. This is for sounds that the note classifier does not know.
        codec: with `demo_clips`: the codec; "" = the shipped one.
        teacher: with `demo_clips`: the teacher whose features are cached; "" = the shipped one, "none" = none.
    """

    demo_clips: int = 0
    cache: str = ""
    manifest: str = ""
    class_field: str = ""
    codec: str = ""
    teacher: str = ""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, when. All variants and seeds get the same prompts and the same noise.

    Attributes:
        evaluate_at: shares of the run, ending with 1.
        clips: generated and measured at each evaluation; 0 = validation losses alone.
        steps: of the solver (multistep).
        guidance: scale of classifier-free guidance.
        rescale: share of its rescaling, 0 to 1.
        seed: of the noise.
    """

    evaluate_at: tuple[float, ...] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    clips: int = 192
    steps: int = 12
    guidance: float = 2.0
    rescale: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Study:
    """A study file, read and checked."""

    name: str
    data: DataSource
    examples: int
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    set: tuple[str, ...]
    evaluation: EvaluationSettings
    baseline: str

    def seeds_of(self, variant: Variant) -> tuple[int, ...]:
        """The seeds that a variant runs with."""
        return variant.seeds or self.seeds


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        variant: name of its variant.
        seed: its seed.
        key: 12 hex digits of the hash over all that decides its figures; part of its folder's name.
        config: the run's config as JSON.
    """

    variant: str
    seed: int
    key: str
    config: dict

    @property
    def folder(self) -> str:
        """Its folder below that of the study's runs."""
        return f"{self.variant}-seed{self.seed}-{self.key}"


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        UserError: no such file, not JSON, an unknown or missing key, a value of the wrong kind, an unknown recipe.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such study file; hint: docs/studies.md says what one holds") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    return study_from_json(data, str(path))


def study_from_json(data: object, where: str) -> Study:
    """A study from plain JSON; `where` names its file in complaints."""
    evaluation_keys = [f.name for f in fields(EvaluationSettings) if f.name != "seed"]
    known = ["name", "data", "examples", "variants", "seeds", "set", "baseline", *evaluation_keys]
    data = _checked(_with_new_names(data, where), known, where)
    # Read what is there, each value with its type.
    for key in ("name", "data", "examples", "variants", "seeds"):
        if key not in data:
            raise UserError(f"{where}: '{key}' is missing")
    variants = _variants(data["variants"], where)
    study = Study(
        name=_typed(data, "name", str, where),
        data=_source(data["data"], where),
        examples=_typed(data, "examples", int, where),
        variants=variants,
        seeds=tuple(_list(data, "seeds", int, where)),
        set=tuple(_list(data, "set", str, where)) if "set" in data else (),
        evaluation=_evaluation({k: data[k] for k in evaluation_keys if k in data}, where),
        baseline=_typed(data, "baseline", str, where) if "baseline" in data else variants[0].name,
    )
    # Then what only the whole can tell: names, seeds, and whether every variant makes a config.
    names = [variant.name for variant in variants]
    if study.baseline not in names:
        raise UserError(f"{where}: baseline '{study.baseline}' is none of its variants ({', '.join(names)})")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise UserError(f"{where}: give at least one seed, each once")
    for variant in variants:
        # Made and thrown away: a variant that has no config is refused with the file.
        run_config(study, variant, study.seeds[0])
        if odd := set(variant.seeds) - set(study.seeds):
            raise UserError(f"{where}: variant {variant.name}: seed {min(odd)} is none of the study's")
    return study


def run_config(study: Study, variant: Variant, seed: int) -> RunConfig:
    """The config of one run: recipe, the study's overrides, the variant's, then length, seed and snapshots.

    Raises:
        UserError: an unknown recipe or setting, or intervals of evaluation that the batch size cannot meet.
    """
    # The variant's changes come last, and win. No machine chooses a precision of its own: figures are compared.
    config = override(load_recipe(variant.recipe), ["train.precision=fp32", *study.set, *variant.set])
    total = variant.examples or study.examples
    every = int(total * snapshot_step(study))
    # A checkpoint can only stand behind a whole batch.
    if every < config.train.batch_size:
        raise UserError(
            f"variant {variant.name}: evaluate_at asks for a snapshot every {every} examples, less than a batch "
            f"({config.train.batch_size}); hint: give fewer or rounder shares"
        )
    # Every snapshot is kept until it is evaluated.
    train = replace(
        config.train, total_examples=total, seed=seed, checkpoint_every=every,
        keep_last=MOST_SNAPSHOTS + 1, tensorboard=False,
    )  # fmt: skip
    return replace(config, train=train)


def snapshot_step(study: Study) -> Fraction:
    """Share of a run between checkpoints, so that every share of `evaluate_at` falls on one."""
    # As fractions: 0.1 in binary is no tenth, and steps would not add up.
    shares = [Fraction(share).limit_denominator(1000) for share in study.evaluation.evaluate_at]
    denominator = reduce(lcm, (share.denominator for share in shares))
    step = Fraction(reduce(gcd, (int(share * denominator) for share in shares)), denominator)
    if 1 / step > MOST_SNAPSHOTS:
        raise UserError(
            f"evaluate_at needs {ceil(1 / step)} snapshots a run (every {float(step):g} of it); hint: give "
            f"rounder shares, for at most {MOST_SNAPSHOTS}"
        )
    return step


def runs_of(study: Study, data_fingerprint: str, eval_set: str) -> list[PlannedRun]:
    """All runs, seed by seed, so that a study cut short has whole rows of seeds.

    Args:
        data_fingerprint: of the cache.
        eval_set: key of the evaluation's prompts, reference and classifier; see `EvalSet`.
    """
    runs = []
    for seed in study.seeds:
        for variant in [variant for variant in study.variants if seed in study.seeds_of(variant)]:
            config = to_json(run_config(study, variant, seed))
            key = run_key(config, data_fingerprint, eval_set, study.evaluation)
            runs.append(PlannedRun(variant.name, seed, key, config))
    return runs


def run_key(config: Mapping, data_fingerprint: str, eval_set: str, evaluation: EvaluationSettings) -> str:
    """The hash that names a run: all that decides its figures, beside segue's own code."""
    settings = asdict(evaluation)
    settings["judge_clips"] = settings.pop("clips")  # hashed under its first name: finished runs keep theirs
    if not settings["rescale"]:  # came later: runs without it keep their keys
        del settings["rescale"]
    return fingerprint({"config": first_json(config), "data": data_fingerprint, "judged": eval_set, **settings})


def same_settings(stored: dict, wanted: dict) -> bool:
    """True where two configs say the same once settings that the older one did not know have their defaults."""
    try:
        read = to_json(from_json(stored))
    except UserError:
        return False
    return fingerprint(read) == fingerprint(wanted)


def fingerprint(data: object) -> str:
    """12 hex digits of the hash of plain JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def settings_from_json(stored: Mapping) -> EvaluationSettings:
    """The settings that a run's folder holds; those of earlier versions, too."""
    values = {"clips" if key == "judge_clips" else key: value for key, value in stored.items()}
    return EvaluationSettings(**values | {"evaluate_at": tuple(values["evaluate_at"])})


_FIRST_NAMES = {"arms": "variants", "judge_clips": "clips"}


def _with_new_names(data: object, where: str) -> object:
    """A study file whose keys may have the names of earlier versions.

    Raises:
        UserError: both names of one key.
    """
    if not isinstance(data, dict):
        return data
    for old, new in _FIRST_NAMES.items():
        if old in data and new in data:
            raise UserError(f"{where}: '{old}' is an earlier name of '{new}'; hint: give '{new}' alone")
    return {_FIRST_NAMES.get(key, key): value for key, value in data.items()}


def _variants(given: object, where: str) -> tuple[Variant, ...]:
    if not isinstance(given, list) or not given:
        raise UserError(f'{where}: \'variants\' is a list of recipe names or of {{"recipe", "name", "set"}}')
    variants = []
    for entry in given:
        if isinstance(entry, str):
            variants.append(Variant(entry, entry))
            continue
        entry = _checked(entry, ["recipe", "name", "set", "examples", "seeds"], f"{where}: variants")
        if "recipe" not in entry:
            raise UserError(f"{where}: a variant without a recipe")
        recipe = _typed(entry, "recipe", str, where)
        name = _typed(entry, "name", str, where) if "name" in entry else recipe
        changes = tuple(_list(entry, "set", str, where)) if "set" in entry else ()
        examples = _typed(entry, "examples", int, where) if "examples" in entry else 0
        if examples < 0:
            raise UserError(f"{where}: variant {name}: examples is {examples}; hint: give a positive number")
        seeds = tuple(_list(entry, "seeds", int, where)) if "seeds" in entry else ()
        variants.append(Variant(name, recipe, changes, examples, seeds))
    # Names become folders: each once, and without separators.
    names = [variant.name for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two variants are called '{twice[0]}'; hint: give one a name of its own")
    odd = [name for name in names if not name or set(name) & set('/\\|"') or name.startswith(".")]
    if odd:
        raise UserError(f"{where}: '{odd[0]}' cannot name a variant (it becomes part of a folder's name)")
    return tuple(variants)


def _source(given: object, where: str) -> DataSource:
    data = _checked(given, [f.name for f in fields(DataSource)], f"{where}: data")
    clips = data.get("demo_clips", 0)
    cache = data.get("cache", "")
    # One of the two, never both and never none.
    if bool(clips) == bool(cache):
        raise UserError(f'{where}: data is either {{"demo_clips": 6000}} or {{"cache": PATH}}')
    if clips and (not isinstance(clips, int) or clips < 200):
        raise UserError(f"{where}: data.demo_clips is {clips!r}; hint: give at least 200")
    wrong = [key for key in ("manifest", "class_field") if clips and key in data]
    wrong += [key for key in ("codec", "teacher") if cache and key in data]
    if wrong:
        raise UserError(f"{where}: data.{wrong[0]} does not go with {'demo_clips' if clips else 'cache'}")
    for key, value in data.items():
        if key != "demo_clips" and not isinstance(value, str):
            raise UserError(f"{where}: data.{key} is {value!r}; hint: give a string")
    return DataSource(**data)


def _evaluation(given: dict, where: str) -> EvaluationSettings:
    values = dict(given)
    if "evaluate_at" in values:
        shares = values["evaluate_at"]
        if not isinstance(shares, list) or not shares or not all(_is_number(s) and 0 < s <= 1 for s in shares):
            raise UserError(f"{where}: evaluate_at is a list of shares of the run, each above 0 and at most 1")
        # The end of a run is always evaluated: final values come from there.
        values["evaluate_at"] = tuple(sorted({float(s) for s in shares} | {1.0}))
    for key, lowest in (("clips", 0), ("steps", 1)):
        if key in values and _typed(values, key, int, where) < lowest:
            raise UserError(f"{where}: {key} is {values[key]}; hint: give at least {lowest}")
    # Fewer clips give intervals that say nothing.
    if 0 < values.get("clips", 192) < 8:
        raise UserError(f"{where}: clips is {values['clips']}; hint: give at least 8, or 0 for none")
    if "guidance" in values:
        values["guidance"] = float(_typed(values, "guidance", (int, float), where))
    if "rescale" in values:
        values["rescale"] = float(_typed(values, "rescale", (int, float), where))
        if not 0 <= values["rescale"] <= 1:
            raise UserError(f"{where}: rescale is {values['rescale']:g}; give a number from 0 to 1")
    return EvaluationSettings(**values)


def _checked(data: object, known: list[str], where: str) -> Mapping:
    """A JSON object whose keys are all known."""
    if not isinstance(data, dict):
        raise UserError(f"{where}: give an object with {', '.join(known)}")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key '{key}'; {hint}")
    return data


def _typed(data: Mapping, key: str, kind, where: str):
    value = data[key]
    # True is an int to Python, but no number in a study file.
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = {str: "a string", int: "a whole number"}
        raise UserError(f"{where}: {key} is {value!r}; hint: give {kinds.get(kind, 'a number')}")
    return value


def _list(data: Mapping, key: str, kind: type, where: str) -> list:
    values = data[key]
    if not isinstance(values, list) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
        raise UserError(f"{where}: {key} is a list of {'strings' if kind is str else 'whole numbers'}")
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
