"""Models by name: a local folder as it is, or files fetched from the hub; and the parts of a diffusers pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from segue.types import UserError, first_line, printable

INDEX = "model_index.json"  # a folder that holds it is a whole diffusers pipeline
# Of one part of a pipeline: no pickled weights, no code.
_PART_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_ANYWHERE_ELSE = ("*..*", "/*", "*\\*", "*:*")  # names that may lead out of the folder that they are fetched into


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
    fetched = snapshot_download(
        repository, revision=revision or None, allow_patterns=list(patterns), ignore_patterns=list(_ANYWHERE_ELSE)
    )
    return Path(fetched)


def is_hub_name(name: str) -> bool:
    """Whether this has the form OWNER/NAME or OWNER/NAME@REVISION of the hub, and is no file or folder here."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", name) is not None and not Path(name).exists()


def model_place(run: Path | str) -> Path:
    """Where a run or a model lies: a path as it is; what a hub name means is fetched where it is not there yet.

    A path that exists wins over a hub name of the same spelling. HF_HUB_OFFLINE=1 keeps to what was fetched before.

    Raises:
        UserError: there is nothing of that name here, and the hub does not give it.
    """
    if isinstance(run, Path) or not is_hub_name(run):
        return Path(run)
    hint = "hint: check the path or the name; a private one needs `hf auth login` or HF_TOKEN"
    try:
        _refuse_names_elsewhere(run)
        folder = fetched_folder(run, _PART_FILES)
    except (OSError, ValueError) as error:
        raise UserError(f"{run}: no such file or folder here, and {_reason(error)}; {hint}") from error
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"{run}: no model of segue on the hub, it has no model.safetensors; hint: segue push makes one")
    return folder


def _refuse_names_elsewhere(name: str) -> None:
    """Refuse a model of the hub one of whose files would be written outside of its own folder.

    Raises:
        UserError: there is such a file.
    """
    from huggingface_hub import HfApi

    repository, _, revision = name.partition("@")
    try:
        files = HfApi().list_repo_files(repository, revision=revision or None)
    except Exception:  # no network, no such model: what is wrong is told by the fetching that follows
        return
    for file in files:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts or "\\" in file or ":" in file:
            raise UserError(
                f"{name}: its file {printable(file)!r} would lie outside of its folder, nothing was fetched; hint: do "
                "not use this model"
            )


def _reason(error: Exception) -> str:
    """Why the hub gave nothing, in words."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return "its owner gives it to those alone who accept the terms on its page of the hub"
    if kind == "RepositoryNotFoundError":
        return "no model of that name on the hub, or a private one"
    if kind == "RevisionNotFoundError":
        return "the model on the hub has no such revision"
    if kind in ("LocalEntryNotFoundError", "IncompleteSnapshotError", "OfflineModeIsEnabled"):
        return "the hub cannot be reached"
    return f"the hub does not give it ({first_line(error)})"


def check_may_send(name: str, public: bool) -> None:
    """What can be known before a folder is sent: the name's form, a token, and whether the place is public already.

    Raises:
        UserError: not OWNER/NAME, no token, a hub that does not answer, or a public place without `public`.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is None:
        raise UserError(f"{name}: no name of the hub; hint: write it as OWNER/NAME")
    if not get_token():
        raise UserError(f"{name}: no token for the hub; hint: `hf auth login`, or set HF_TOKEN to one that may write")
    try:
        is_public = not HfApi().model_info(name).private
    except RepositoryNotFoundError:
        return
    except Exception as error:  # whatever the network's own library says
        raise _not_sent(name, error) from error
    if is_public and not public:
        raise UserError(f"{name}: is public on the hub; hint: --public says that you mean it, or take another name")


def send_folder(folder: Path, name: str, public: bool) -> str:
    """Send a folder's files to a model of the hub, which is made where it is not there; returns a line on its place.

    Raises:
        UserError: the hub refuses, or cannot be reached; what was there before is kept.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        # One commit: others see all of the files or none.
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a model of segue")
        is_private = api.model_info(name).private
    except Exception as error:  # whatever the network's own library says
        raise _not_sent(name, error) from error
    # A place that was private stays so: its settings on the hub change that.
    kind = "private (its settings on the hub can make it public)" if is_private else "public"
    return f"{api.endpoint}/{name}: {kind}; use it with: segue generate {name} PROMPT"


def _not_sent(name: str, error: Exception) -> UserError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return UserError(
            f"{name}: the hub does not let this token write there; hint: `hf auth login` with a token that may write, "
            "and a name of your own account"
        )
    return UserError(f"{name}: nothing was sent, the hub does not take it ({first_line(error)}); hint: try it again")


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
