"""From messages to token ids and back, and the append-only transcript of one episode.

Promises. Sampled ids go in as sampled and are never decoded and re-encoded. Everything between turns follows the
model's chat template exactly: it is derived from the template by rendering and comparing. Text is encoded with special
tokens switched off, so no string, ours or foreign, can become one. A transcript is kept once, in compact form (one pad
per picture, what vLLM takes); the expanded form (what the learner takes) is computed from it by repeating each pad.
`seal` validates everything and raises `SealError`, so that a broken transcript dies where it was made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsr_ray.agent.grammar import neutralise
from mmsr_ray.agent.pictures import Geometry, PictureLimits, Pictures
from mmsr_ray.agent.pieces import Own, Piece, SizedPicture
from mmsr_ray.agent.template import CodecError, Segment, TemplateGlue, derive_glue, find_template
from mmsr_ray.types import Generation, Picture, SealedTokens


class SealError(RuntimeError):
    """A transcript that breaks a promise: a bug of ours or of the engine, never the policy's doing."""


@dataclass(frozen=True, slots=True)
class Delta:
    """An encoded user message that can be measured before it is added."""

    ids: list[int]  # compact
    pictures: tuple[SizedPicture, ...]
    expanded: int  # tokens it adds to the expanded length


class Codec:
    """Tokenizer, chat template and vision geometry of one model. Build it with `load`; it is read-only afterwards."""

    def __init__(
        self,
        tokenizer: object,
        glue: TemplateGlue,
        vision_ids: Iterable[int],
        pad_id: int,
        pictures: Pictures,
    ):
        self._wrapper = tokenizer
        self._tokenizer = tokenizer.backend_tokenizer  # type: ignore[attr-defined]  # the Rust tokenizer: an eighth of the overhead
        self._tokenizer.encode_special_tokens = True  # "<|im_end|>" in any text is plain text, for good
        self.glue = glue
        self.geometry = pictures.geometry
        self.image_pad_id = pad_id
        self.banned_ids = tuple(sorted(vision_ids))
        self._pictures = pictures
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        contents = sorted((re.escape(token.content) for token in added.values() if len(token.content) > 1), key=len, reverse=True)
        self._added = re.compile("|".join(contents)) if contents else None
        self.end_id = self._require_id(glue.end)

    @classmethod
    def load(
        cls,
        model_path: str | Path,
        *,
        min_pixels: int,
        max_pixels: int,
        thumbnail_max_pixels: int,
        limits: PictureLimits | None = None,
    ) -> Codec:
        """From a model folder or hub id. Areas in pixels. Raises CodecError where something a Qwen2.5-VL needs is missing."""
        from transformers import AutoConfig, AutoTokenizer  # seconds to import, and whoever only handles a Codec's kind need not

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(model_path))
            config = AutoConfig.from_pretrained(str(model_path))
        except (OSError, ValueError) as error:
            raise CodecError(f"{model_path} holds no usable tokenizer and config: {str(error).splitlines()[0]}") from error
        vision = config.vision_config if hasattr(config, "vision_config") else None
        if vision is None:
            raise CodecError(f"{model_path} is a {config.model_type} without a vision tower: give a Qwen2.5-VL model")
        pad = tokenizer.convert_ids_to_tokens(config.image_token_id)
        glue = derive_glue(tokenizer, find_template(tokenizer, str(model_path)), pad)
        pictures = Pictures(
            Geometry(vision.patch_size, vision.spatial_merge_size),
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            thumbnail_max_pixels=thumbnail_max_pixels,
            limits=limits or PictureLimits(),
        )
        names = {config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id}
        named = {i for i, token in tokenizer.added_tokens_decoder.items() if re.search(r"vision|image|video", token.content)}
        return cls(tokenizer, glue, names | named, config.image_token_id, pictures)

    # ------------------------------------------------------------------------------------------------ pictures

    def user_picture(self, data: bytes) -> SizedPicture:
        """The user's picture within the model's pixel limits. Raises PictureError."""
        return self._pictures.user_picture(data)

    def thumbnail(self, data: bytes) -> SizedPicture:
        """A search result's picture; small ones stay small. Raises PictureError."""
        return self._pictures.thumbnail(data)

    # ------------------------------------------------------------------------------------------------ text

    def encode_turn(self, text: str) -> list[int]:
        """Ids of an assistant turn written by hand (a demonstration, a scripted policy), its end token included."""
        return [*self.encode_text(text), self.end_id]

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; never a special token. Raises CodecError if one came out all the same (a bug)."""
        if not text:
            return []
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._special_ids.isdisjoint(ids):
            raise CodecError(f"special token in plain text {text[:80]!r}: this tokenizer cannot encode special tokens as text")
        return ids

    def decode_turn(self, ids: Sequence[int]) -> str:
        """Text of a sampled turn without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def inert(self, text: str) -> str:
        """Foreign text with our tags and all of this tokenizer's added tokens broken up."""
        text = neutralise(text)
        return self._added.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text) if self._added else text

    def encode_message(self, pieces: Sequence[Piece], head: Sequence[Segment], tail: Sequence[Segment]) -> Delta:
        """Ids of `head`, the pieces as one user message, and `tail`. Neighbouring texts are encoded together, as the template would."""
        ids: list[int] = []
        pictures: list[SizedPicture] = []
        pending: list[str] = []
        for segment in (*head, *self._segments(pieces, pictures), *tail):
            if segment.special:
                ids += self.encode_text("".join(pending))
                pending.clear()
                ids.append(self._require_id(segment.text))
            else:
                pending.append(segment.text)
        ids += self.encode_text("".join(pending))
        extra = sum(self.geometry.tokens(picture.grid) - 1 for picture in pictures)
        return Delta(ids, tuple(pictures), len(ids) + extra)

    def _segments(self, pieces: Sequence[Piece], pictures: list[SizedPicture]) -> list[Segment]:
        segments: list[Segment] = []
        for piece in pieces:
            if isinstance(piece, SizedPicture):
                pictures.append(piece)
                segments.extend(self.glue.picture)
            else:
                segments.append(Segment(piece.text if isinstance(piece, Own) else self.inert(piece.text), special=False))
        return segments

    def _require_id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise CodecError(f"the tokenizer has no token {token}")
        return found


class Transcript:
    """The tokens of one episode, append-only. User and assistant messages alternate, a user message first."""

    def __init__(self, codec: Codec):
        self._codec = codec
        self._ids: list[int] = []
        self._mask: list[bool] = []
        self._logprobs: list[float] = []
        self._with_logprobs: bool | None = None  # of all model turns or of none; None: there was no turn
        self._versions: list[int] = []
        self._pictures: list[SizedPicture] = []
        self._expanded = 0
        self._prompt_length = 0
        self._turns = 0

    def encode_user(self, pieces: Sequence[Piece]) -> Delta:
        """The next user message up to where the model speaks, encoded but not added."""
        glue = self._codec.glue
        if not self._ids:
            return self._codec.encode_message(pieces, glue.opening, glue.closing)
        # The end token is the model's own; where it stopped some other way (end of text), it is ours.
        ended = self._ids[-1] == self._codec.end_id
        head = glue.between[1:] if ended else glue.between
        return self._codec.encode_message(pieces, head, glue.closing)

    def add_user(self, pieces: Sequence[Piece] | Delta) -> None:
        """Append a user message and the opening of the assistant turn after it."""
        delta = pieces if isinstance(pieces, Delta) else self.encode_user(pieces)
        if self._ids and not self._mask[-1]:
            raise SealError("two user messages without a model turn between them")
        self._append(delta.ids, [0.0] * len(delta.ids), [-1] * len(delta.ids), sampled=False)
        self._pictures.extend(delta.pictures)
        self._expanded += delta.expanded - len(delta.ids)
        if self._turns == 0:
            self._prompt_length = self._expanded

    def add_generation(self, generation: Generation) -> None:
        """Append a model turn exactly as sampled. Raises SealError for one that no engine may return."""
        n = len(generation.token_ids)
        if not self._ids or self._mask[-1]:
            raise SealError("a model turn without a user message before it")
        logprobs = [0.0] * n if generation.logprobs is None else generation.logprobs
        if n == 0 or len(logprobs) != n or len(generation.versions) != n:
            raise SealError(f"a model turn of {n} tokens with {len(logprobs)} log-probs and {len(generation.versions)} versions")
        if self._with_logprobs not in (None, generation.logprobs is not None):
            raise SealError("some model turns have log-probs and some have none")
        self._with_logprobs = generation.logprobs is not None
        self._append(generation.token_ids, logprobs, generation.versions, sampled=True)
        self._turns += 1

    def add_text_turn(self, text: str, version: int = 0) -> None:
        """Append a demonstrated model turn: log-probs 0."""
        ids = self._codec.encode_turn(text)
        self.add_generation(Generation(ids, [0.0] * len(ids), [version] * len(ids), stopped=True))

    def _append(self, ids: Sequence[int], logprobs: Sequence[float], versions: Sequence[int], sampled: bool) -> None:
        self._ids.extend(ids)
        self._mask.extend([sampled] * len(ids))
        self._logprobs.extend(logprobs)
        self._versions.extend(versions)
        self._expanded += len(ids)

    # ------------------------------------------------------------------------------------------------ views

    def compact_ids(self) -> list[int]:
        """All ids so far, one pad per picture: what vLLM takes."""
        return list(self._ids)

    @property
    def pictures(self) -> list[Picture]:
        """Pictures so far, in order of appearance."""
        return [sized.picture for sized in self._pictures]

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        return [sized.grid for sized in self._pictures]

    @property
    def length(self) -> int:
        """Expanded tokens so far."""
        return self._expanded

    @property
    def prompt_length(self) -> int:
        """Expanded tokens before the first model turn."""
        return self._prompt_length

    @property
    def sampled_tokens(self) -> int:
        return sum(self._mask)

    def seal(self) -> SealedTokens:
        """The learner's view, validated; without log-probs where the engine was asked for none. Raises SealError with what is wrong."""
        ids = np.asarray(self._ids, dtype=np.int32)
        grids = np.asarray(self.grids, dtype=np.int32).reshape(-1, 3)
        repeats = expansion(ids, grids, self._codec.image_pad_id, self._codec.geometry.merge)
        sealed = SealedTokens(
            ids=np.repeat(ids, repeats),
            loss_mask=np.repeat(np.asarray(self._mask, dtype=bool), repeats),
            logprobs=None if self._with_logprobs is False else np.repeat(np.asarray(self._logprobs, dtype=np.float32), repeats),
            versions=np.repeat(np.asarray(self._versions, dtype=np.int32), repeats),
            grids=grids,
            pictures=tuple(self.pictures),
        )
        if sealed.length != self._expanded:
            raise SealError(f"{sealed.length} tokens sealed, {self._expanded} counted")
        validate_sealed(sealed, pad_id=self._codec.image_pad_id, merge=self._codec.geometry.merge, banned=self._codec.banned_ids)
        for array in (sealed.ids, sealed.loss_mask, sealed.logprobs, sealed.versions, sealed.grids):
            if array is not None:
                array.setflags(write=False)
        return sealed


def expansion(compact: np.ndarray, grids: np.ndarray, pad_id: int, merge: int) -> np.ndarray:
    """How often each compact token appears when expanded (int64 [len(compact)]): a pad as often as its picture has tokens.

    `grids` is int [N, 3]. Raises SealError where pads and pictures differ in number.
    """
    pads = np.flatnonzero(compact == pad_id)
    if len(pads) != len(grids):
        raise SealError(f"{len(pads)} image pads for {len(grids)} pictures")
    repeats = np.ones(len(compact), dtype=np.int64)
    repeats[pads] = grids.prod(axis=1) // merge**2
    return repeats


def validate_sealed(sealed: SealedTokens, *, pad_id: int, merge: int, banned: Sequence[int]) -> None:
    """Every promise of `SealedTokens`, checked. Raises SealError naming the broken one."""
    n, mask = sealed.length, sealed.loss_mask
    logprobs = np.zeros(n, np.float32) if sealed.logprobs is None else sealed.logprobs
    checks = {
        "arrays differ in length": all(a.shape == (n,) for a in (mask, logprobs, sealed.versions)),
        "wrong dtypes": [a.dtype for a in (sealed.ids, mask, logprobs, sealed.versions, sealed.grids)]
        == [np.int32, np.bool_, np.float32, np.int32, np.int32],
        "pictures and grids differ in number": sealed.grids.shape == (len(sealed.pictures), 3),
    }
    _raise_first(checks)
    sampled_versions = sealed.versions[mask]
    image_tokens = int((sealed.grids.prod(axis=1) // merge**2).sum())
    checks = {
        "a grid that the merge does not divide": not (sealed.grids[:, 1:] % merge).any() and bool((sealed.grids > 0).all()),
        "image pads differ from the pictures' tokens": int((sealed.ids == pad_id).sum()) == image_tokens,
        "a vision token was sampled": not np.isin(sealed.ids[mask], banned).any(),
        "a log-prob that is no log-prob": bool(np.isfinite(logprobs).all() and (logprobs <= 1e-3).all()),
        "a log-prob outside the sampled tokens": not logprobs[~mask].any(),
        "a sampled token without version": bool((sampled_versions >= 0).all()),
        "a version outside the sampled tokens": bool((sealed.versions[~mask] == -1).all()),
        "versions that go back in time": not (np.diff(sampled_versions) < 0).any(),
    }
    _raise_first(checks)


def _raise_first(checks: dict[str, bool]) -> None:
    for name, ok in checks.items():
        if not ok:
            raise SealError(name)
