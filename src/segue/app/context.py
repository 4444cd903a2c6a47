"""What the tabs of one page share."""

from __future__ import annotations

from dataclasses import dataclass

from segue.app.folders import Folders
from segue.app.jobs import Jobs
from segue.app.models import Models
from segue.app.sessions import Sessions


@dataclass(frozen=True)
class Context:
    """The folders of a page, its visitors, its loaded models, and the trainings that it started."""

    folders: Folders
    sessions: Sessions
    models: Models
    jobs: Jobs
