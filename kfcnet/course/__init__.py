"""The checker of the course's exercises (docs/course/): what is wrong with an answer, by name."""

from kfcnet.course.checking import Verdict, check, examine
from kfcnet.course.exercise import Exercise
from kfcnet.course.exercises import EXERCISES

__all__ = ["EXERCISES", "Exercise", "Verdict", "check", "examine"]
