"""Training of the compact self-supervised teacher on sounds without labels."""

from segue.training.teacher.teacher_run import train_teacher
from segue.training.teacher.views import TeacherTrainConfig

__all__ = ["TeacherTrainConfig", "train_teacher"]
