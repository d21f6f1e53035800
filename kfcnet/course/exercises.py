"""All exercises of the course, by number."""

from kfcnet.course import convolutions, damping, fisher, kronecker, training

EXERCISES = {
    **fisher.EXERCISES,
    **kronecker.EXERCISES,
    **convolutions.EXERCISES,
    **damping.EXERCISES,
    **training.EXERCISES,
}
