"""What a user turn is made of before it is tokens: our own text, foreign text, pictures.

Promise: the distinction is made where text enters, so that nobody has to guess later whom a string came from.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsr_ray.types import Picture


class InputError(ValueError):
    """A question or picture that cannot be asked about; the message is fit for a user."""


class PictureError(InputError):
    """A picture that is corrupt, too large or too narrow."""


class QuestionError(InputError):
    """A question that is empty or too long."""


@dataclass(frozen=True, slots=True)
class Own:
    """Text of a prompt set. May hold our tags; special tokens in it are still encoded as plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """Text from a user, a data set or the web: neutralised before it is encoded."""

    text: str


@dataclass(frozen=True, slots=True)
class SizedPicture:
    """A picture as the model sees it (RGB PNG, sides multiples of patch x merge) and its (t, h, w) grid in patches."""

    picture: Picture
    grid: tuple[int, int, int]


Piece = Own | Foreign | SizedPicture
