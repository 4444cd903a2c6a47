"""Models by name: a local folder as it is, or files fetched from the hub; and the parts of a diffusers pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.types import UserError, first_line

INDEX = "model_index.json"  # a folder that holds it is a whole diffusers pipeline
# Of one part of a pipeline: no pickled weights, no code.
_PART_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


def model_folder(option: str, name: str, patterns: Sequence[str]) -> Path:
    """The folder of a model; of one on the hub, these files are fetched where they are not there yet.

    HF_HUB_OFFLINE=1 keeps to what was fetched before.

    Args:
        option: what the user gave the name to, for the error's line: "--codec".
        name: local folder, hub name, or NAME@REVISION.
        patterns: of the files that are wanted; nothing else is fetched.

    Raises:
        UserError: no such folder, and not to be had from the hub.
    """
    path = Path(name)
    if path.exists():
        return path
    try:
        return fetched_folder(name, patterns)
    except (OSError, ValueError) as error:
        if type(error).__name__ == "GatedRepoError":
            raise UserError(
                f"{option} {name}: its owner gives it to those alone who accept the terms on its page of the hub; "
                "hint: accept them, then log in with `hf auth login` or set HF_TOKEN"
            ) from error
        raise UserError(
            f"{option} {name}: no such folder, and not to be had from the hub ({first_line(error)}); "
            "hint: give a name that segue knows, a hub name or a local folder"
        ) from error


def fetched_folder(name: str, patterns: Sequence[str]) -> Path:
    """The folder of a model on the hub, with the files that match `patterns`; fetched where they are not there yet.

    Args:
        name: hub name, or NAME@REVISION.
        patterns: of the files that are wanted.

    Raises:
        OSError: the hub cannot be reached, or has no such model.
        ValueError: it is no name of the hub.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))


@dataclass(frozen=True)
class PipelineFolder:
    """A diffusers pipeline, as `save_pretrained` writes it: one folder for each of its parts, and an index of them.

    Attributes:
        option: what the user gave the name to, for the lines of errors.
        name: folder, hub name, or NAME@REVISION.
        path: where it lies.
        index: of part name -> [library, class].
    """

    option: str
    name: str
    path: Path
    index: dict

    def kind(self, part: str) -> str:
        """The class of a part.

        Raises:
            UserError: the pipeline has no such part.
        """
        entry = self.index.get(part)
        if not (isinstance(entry, list) and len(entry) == 2 and entry[1]):
            parts = ", ".join(name for name, value in self.index.items() if isinstance(value, list) and value[-1])
            raise UserError(
                f"{self.option} {self.name}: its {INDEX} names no {part} (it names {parts or 'nothing'}); "
                "hint: give the folder of a whole text-to-audio pipeline"
            )
        return entry[1]

    def part(self, name: str) -> Path:
        """The folder of a part, fetched where it lies on the hub.

        Raises:
            UserError: the pipeline has no such part, or its folder is missing.
        """
        self.kind(name)
        folder = self.path / name
        if not Path(self.name).exists():
            model_folder(self.option, self.name, tuple(f"{name}/{pattern}" for pattern in _PART_FILES))
        if not folder.is_dir():
            raise UserError(
                f"{self.option} {self.name}: its folder {name}/ is missing; hint: copy the whole pipeline, or save it "
                "again with save_pretrained"
            )
        return folder

    def config(self, part: str, file: str = "config.json") -> dict:
        """The configuration of a part.

        Raises:
            UserError: it is missing or no JSON object.
        """
        path = self.part(part) / file
        try:
            return _read_object(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.option} {self.name}: {part}/{file} cannot be read ({first_line(error)}); hint: save the "
                "pipeline again with save_pretrained"
            ) from error


def _read_object(path: Path) -> dict:
    """
    Raises:
        OSError, ValueError: missing, or no JSON object.
    """
    if not path.is_file():
        raise OSError("there is no such file")
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def is_pipeline(name: str) -> bool:
    """Whether this is a local folder of a diffusers pipeline."""
    return (Path(name) / INDEX).is_file()


def pipeline_folder(option: str, name: str) -> PipelineFolder:
    """A diffusers pipeline by folder or hub name; of one on the hub, its index alone is fetched.

    Args:
        option: what the user gave the name to, for the error's line: "--model".

    Raises:
        UserError: no such folder, not to be had from the hub, or no diffusers pipeline.
    """
    path = model_folder(option, name, (INDEX,))
    try:
        index = _read_object(path / INDEX)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{option} {name}: no diffusers pipeline ({INDEX}: {first_line(error)}); hint: give a folder that a "
            "diffusers pipeline was saved to, or its hub name"
        ) from error
    return PipelineFolder(option, name, path, index)
