"""What every model family provides, and what all share: the prompt as one sequence, its words, and how it is pruned."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, ClassVar
from unicodedata import category

import torch
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from flashvlm import units
from flashvlm.backends.loading import INT8, choose_device, choose_dtype, load_tokenizer, load_weights
from flashvlm.backends.packing import align, quick_single_rows
from flashvlm.encode import Encoded, Features, as_picture, encode
from flashvlm.errors import ModelError, UsageError
from flashvlm.options import AskOptions, Sampling
from flashvlm.pixels import resize
from flashvlm.report import Area
from flashvlm.template import ChatTemplate


@dataclass(frozen=True, eq=False)
class Prompt:
    """The unpruned prompt as one sequence of S tokens: text, and visual tokens wherever they stand in it."""

    # (S,) int64: the token ids, with a placeholder for each visual token.
    ids: Tensor
    # (S,) int64: which visual token stands at each place; -1 is text. First the N that may be dropped, video by video,
    # then those that always stay.
    visual: Tensor
    # (axes, S) int64: the positions.
    positions: Tensor
    # N, how many visual tokens may be dropped.
    tokens: int
    # (E, D): the visual tokens that always stay (`Encoded.fixed`); None if there are none.
    fixed: Tensor | None = None
    # How many earlier questions it holds.
    turns: int = 0
    # What the general backend has to know of the form of its class's features, by kind (see `Encoded`).
    forms: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def staying(self) -> int:
        """How many places stay whatever is pruned: the text, and the visual tokens that always stay."""
        return len(self.ids) - self.tokens

    def places(self, kept: Tensor) -> Tensor:
        """The places of the sequence that stay, (B, S') int64, if of the N visual tokens only these (B, K) do."""
        stays = torch.zeros(len(kept), self.tokens, dtype=torch.bool).scatter_(1, kept.cpu(), True)
        droppable = (self.visual >= 0) & (self.visual < self.tokens)
        there = ~droppable | stays[:, self.visual.clamp(0, self.tokens - 1)]
        return there.nonzero()[:, 1].view(len(kept), -1)


class Backend(ABC):
    """One loaded checkpoint of one family.

    A family's class sets `model_class` and implements what is abstract here. Where the defaults do not fit, it also
    overrides `class_tokens`, `area`, `default_frames`, `chat_template`, `template_part`, `visual_tokens`, `markers`,
    `placeholders`, `fit`, `tiles`, `picture`, `looks_twice`, `encodes_parts`, `kept_features`, `fixed_tokens`,
    `encoder_output` and `position_ids`.
    """

    # The name of transformers' class.
    model_class: ClassVar[str]
    # The published prompt format, for checkpoints that come without a chat template.
    chat_template: ClassVar[str | None] = None
    # What prepares pixels, with its version, if that is not this package.
    pixels_by: str = ""
    # What the chat template calls a part of a message that is a video.
    template_part: ClassVar[str] = "video"
    # How many frames to look at if the user does not say; None: a number per second, as in `Sampling`.
    default_frames: ClassVar[int | None] = None
    # Tokens in each group that stand for no place in the picture; they come first.
    class_tokens: ClassVar[int] = 0
    # Whether frames may have any size, so that a video can be seen in small ones first; and no class tokens.
    looks_twice: ClassVar[bool] = False
    # Whether cells of a group can be encoded without the others (see `kept_features`).
    encodes_parts: ClassVar[bool] = False
    # Whether linear layers have int8 weights; all else is in `dtype`.
    int8: bool = False
    # What there is to say of the checkpoint.
    warnings: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.template = ChatTemplate(tokenizer, folder, self.template_part)

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto", dtype: str = "auto") -> Backend:
        """Load a checkpoint folder through transformers' own classes; safetensors only, no remote code.

        Raises:
            ModelError: files that are missing, damaged, or do not fit the family.
            UsageError: a device that this machine does not have, or one that does not compute in the dtype.
        """
        device = choose_device(device)
        if int8 := dtype == INT8:
            from flashvlm.backends.int8 import refuse_elsewhere

            refuse_elsewhere(device)
        chosen = choose_dtype(dtype, device)
        tokenizer = load_tokenizer(folder, cls.chat_template)
        model, warnings = load_weights(folder, cls.model_class, device=device, dtype=chosen, int8=int8)
        quick_single_rows(model)
        align(model)
        backend = cls(model, tokenizer, folder)
        backend.int8 = int8
        backend.warnings = warnings
        return backend

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def precision(self) -> str:
        """The name of what the model computes in: of the dtype, or `int8`."""
        return INT8 if self.int8 else str(self.dtype).removeprefix("torch.")

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    # What a family has to define.

    @property
    @abstractmethod
    def frames_per_group(self) -> int:
        """How many frames make one temporal group."""

    @abstractmethod
    def frame_size(self, height: int, width: int, options: AskOptions, frames: int = 1) -> tuple[int, int]:
        """The (height, width) in pixels that a frame of this size is resized to, within the options' bounds.

        Args:
            frames: how many frames are looked at, for families whose bound is for the whole video.
        """

    @abstractmethod
    def cells(self, frame: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of the grid of cells that a frame of this `frame_size` becomes."""

    @abstractmethod
    def pixels(self, frames: Tensor) -> dict[str, Tensor]:
        """(F, 3, h, w) uint8 frames of `frame_size` as transformers takes them.

        That is its `get_video_features`, or `get_image_features` if a video's `visual_tokens` belong to `image`.
        """

    @abstractmethod
    def features(self, frames: Tensor) -> Features:
        """Turn whole groups of (F, 3, h, w) uint8 frames of `frame_size` into visual tokens, each group independently.

        The tokens of a group are `class_tokens` and then the cells, row by row. The number of groups in a call is
        chosen for speed and must not change the result. It is called in inference mode, so it may write in place.
        """

    # What a family may define.

    def kept_features(self, frames: Tensor, kept: list[Tensor], changed: Tensor | None = None) -> Features:
        """`features` of a family that `encodes_parts`: what the vision encoder computed for the last group is kept.

        Args:
            kept: where it is kept, for groups of one size. Empty at first.
            changed: (n,) bool, cells of a single group: only these are encoded, and their tokens returned, with the
                saliency of all. The others are taken for what they were in the last group.
        """
        raise NotImplementedError

    def fit(self, frame: Tensor, options: AskOptions, frames: int) -> Tensor:
        """A (3, H, W) uint8 frame of a video, of which this many are looked at, resized to `frame_size`."""
        return resize(frame, self.frame_size(frame.shape[1], frame.shape[2], options, frames))

    def tiles(self, picture: Tensor, options: AskOptions) -> tuple[Tensor, int, int]:
        """A (3, H, W) uint8 picture as its tiles, within the options' bounds: here one, which is all of it.

        Returns:
            (T, 3, h, w) uint8 tiles row by row, each as `features` takes a group of one frame, and after several the
            whole picture; and the number of rows and columns of tiles.
        """
        return self.fit(picture, options, 1)[None], 1, 1

    @torch.inference_mode()
    def picture(self, picture: Tensor, options: AskOptions) -> Encoded:
        """A (3, H, W) uint8 picture as visual tokens; a video of one frame if the model is shown no pictures."""
        if not self.shows_pictures:
            return encode(self, self.fit(picture, options, 1)[None], seconds_per_frame=0.0)
        tiles, rows, columns = self.tiles(picture, options)
        return as_picture(encode(self, tiles, seconds_per_frame=0.0), rows, columns)

    def whole(
        self,
        frames: Tensor | Iterator[Tensor],
        seconds_per_frame: float,
        timestamps: tuple[float, ...],
        duration: float,
    ) -> Encoded | None:
        """A whole video encoded at once, if it cannot be encoded group by group; else None.

        Args:
            frames: (F, 3, h, w) uint8 frames of `frame_size`, or an iterator of them, which is left untouched for None.
            seconds_per_frame: how long each stands for.
            timestamps: the second at which each appears.
            duration: how long the video lasts, in seconds.
        """
        return None

    def area(self, height: int, width: int, kind: str = "video") -> Area:
        """The part of a frame of this size, as displayed, that the grid of its tokens divides into equal cells.

        Args:
            kind: `video` or `image`, as in `Encoded`.
        """
        return Area()

    def fixed_tokens(self) -> Tensor | None:
        """The visual tokens (E, D) that end a video and always stay; None if there are none."""
        return None

    @property
    def visual_tokens(self) -> dict[int, str]:
        """The ids that stand for visual tokens in a prompt, each with the key of `mm_encoder_outputs` of its tokens.

        Raises:
            ValueError: config.json names none, and the family's class does not say which they are.
        """
        config = self.model.config
        ids = {kind: getattr(config, f"{kind}_token_id", None) for kind in ("video", "image")}
        if ids["video"] is None:
            raise ValueError(f"{type(self).__name__} must define visual_tokens: its config.json has no video_token_id.")
        return {token: kind for kind, token in ids.items() if token is not None}

    @property
    def part(self) -> str:
        """What the chat template calls the part of a message that is a video."""
        return self.template_part

    @property
    def markers(self) -> dict[str, str]:
        """What the chat template writes where a `video` or an `image` goes; only what the model can be shown."""
        return {kind: self.tokenizer.convert_ids_to_tokens(token) for token, kind in self.visual_tokens.items()}

    @property
    def shows_pictures(self) -> bool:
        """Whether the model is shown pictures as such: the family knows them, and the chat template has a place."""
        return "image" in self.markers and self.template.writes(self.markers["image"], "image")

    def placeholders(self, encoded: Encoded) -> str:
        """What stands in the prompt for a video or picture, in place of the marker: placeholders, and text between."""
        fixed = 0 if encoded.fixed is None else len(encoded.fixed)
        return self.markers[encoded.kind] * (len(encoded.tokens) + fixed)

    def position_ids(self, ids: Tensor, videos: Sequence[Encoded]) -> Tensor:
        """Positions of the whole unpruned sequence, (axes, S) int64: here 0 to S - 1."""
        return torch.arange(len(ids)).unsqueeze(0)

    def encoder_output(self, kind: str, vectors: list[Tensor], planes: Tensor | None) -> Any:
        """The vision encoder's output as transformers' class returns it, for each of B prompts.

        Args:
            kind: the key of `mm_encoder_outputs`.
            vectors: (K, D) of each prompt.
            planes: (P, B * K, D) further features, if the family has any.
        """
        return BaseModelOutputWithPooling(pooler_output=tuple(vectors))  # type: ignore[arg-type]

    # What all families share.

    @property
    def family(self) -> str:
        """`model_type` of config.json."""
        return self.model.config.model_type

    @property
    def single_turn(self) -> bool:
        """Whether config.json says that the model was trained on single questions, as the demo models were."""
        return bool(getattr(self.model.config, "single_turn", False))

    @property
    def text_config(self) -> Any:
        """The language model's configuration."""
        return self.model.config.get_text_config()

    @property
    def head_dim(self) -> int:
        """The width of an attention head of the language model."""
        config = self.text_config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def sampling(self, asked: Sampling) -> Sampling:
        """The sampling asked for, with the family's own number of frames if neither fps nor frames was given."""
        if self.default_frames is None or asked.fps is not None or asked.frames is not None:
            return asked
        return replace(asked, frames=min(self.default_frames, asked.max_frames))

    def prompt(
        self,
        question: str,
        system: str | None,
        videos: Sequence[Encoded],
        history: Sequence[tuple[str, str]] = (),
    ) -> Prompt:
        """The checkpoint's own chat template around the videos, the pictures and the question.

        Args:
            history: the earlier questions of the conversation, each with its answer. The videos are then in the first
                of them, as in transformers' processors.

        Raises:
            UsageError: a question, an answer or a system prompt that contains a marker of visual tokens itself.
            ModelError: a chat template that has no place for a video or picture, or for the history, or cannot be used.
        """
        markers = [*self.markers.values(), *self.tokenizer.convert_ids_to_tokens(list(self.visual_tokens))]
        if any(marker in part for marker in markers for part in (question, system or "", *chain(*history))):
            raise UsageError("The question must not contain the model's own marker for a video or a picture.")
        text = self.template.fill(question, system, [video.kind for video in videos], history)
        # Texts, and the markers between them.
        parts = re.split(f"({'|'.join(map(re.escape, dict.fromkeys(self.markers.values())))})", text)
        shown = self._in_order(parts[1::2], videos)
        parts[1::2] = [self.placeholders(videos[number]) for number in shown]
        # As in transformers' processors: a tokenizer that has a BOS token adds it, unless the template already has it.
        first = self.tokenizer.bos_token
        special = not (first and text.startswith(first))
        ids = torch.tensor(self.tokenizer("".join(parts), add_special_tokens=special).input_ids)
        fixed = [video.fixed for video in videos if video.fixed is not None]
        return Prompt(
            ids,
            self._numbered(ids, videos, shown),
            self.position_ids(ids, [videos[number] for number in shown]),
            sum(len(video.tokens) for video in videos),
            torch.cat(fixed) if fixed else None,
            len(history),
        )

    def _in_order(self, markers: Sequence[str], videos: Sequence[Encoded]) -> list[int]:
        """Which video or picture stands at each marker: some templates put all pictures before all videos."""
        left = list(range(len(videos)))
        shown = []
        for marker in markers:
            fitting = (number for number in left if self.markers[videos[number].kind] == marker)
            if (number := next(fitting, None)) is None:
                break
            left.remove(number)
            shown.append(number)
        if len(shown) < max(len(markers), len(videos)):
            names = {"image": "picture", "video": "video"}
            wanted = [names[kind] for kind in dict.fromkeys(video.kind for video in videos)]
            told = f"a {wanted[0]}" if len(videos) == 1 else f"{len(videos)} {'s and '.join(wanted)}s"
            there = " or ".join(dict.fromkeys(self.markers[video.kind] for video in videos))
            places = units.plural(len(markers), "place") if len(markers) > 1 else "no place"
            raise ModelError(f"The chat template of this model has {places} for {told} ({there}).")
        return shown

    def _numbered(self, ids: Tensor, videos: Sequence[Encoded], shown: Sequence[int]) -> Tensor:
        """Which visual token stands at each place, as in `Prompt`; videos and pictures stand there as `shown` says."""
        counts = [(len(video.tokens), 0 if video.fixed is None else len(video.fixed)) for video in videos]
        begins, fixed_begins = ([0, *accumulate(numbers)] for numbers in zip(*counts, strict=True))
        parts = []
        for number in shown:
            (count, fixed), order = counts[number], videos[number].order
            own = torch.arange(count + fixed) if order is None else order.cpu()
            always = own - count + begins[-1] + fixed_begins[number]
            parts.append(torch.where(own < count, own + begins[number], always))
        numbers = torch.cat(parts)
        there = torch.isin(ids, torch.tensor(list(self.visual_tokens)))
        if int(there.sum()) != len(numbers):
            tokens = self.tokenizer.convert_ids_to_tokens(list(self.visual_tokens))
            raise ModelError(f"The tokenizer in {self.folder} does not take {' or '.join(tokens)} as one token.")
        return torch.full_like(ids, -1).masked_scatter(there, numbers)

    def words(self, question: str) -> Tensor:
        """Input embeddings of the question's own tokens, (L, D)."""
        ids = self.tokenizer(question, add_special_tokens=False).input_ids
        return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=self.device))

    def too_long(self, text: str) -> bool:
        """Whether the tokens of `text` alone are more than the model has positions."""
        most = self.text_config.max_position_embeddings
        # No tokenizer makes tokens of so many characters on average, and it may take minutes to find that out.
        return len(text) > 64 * most or len(self.tokenizer(text, add_special_tokens=False, verbose=False)[0]) > most

    def unknown_words(self, text: str) -> list[str]:
        """The words of `text` that the tokenizer has no token for, each once."""
        unknown = self.tokenizer.unk_token_id
        # An emoji counts as a word, and so does a run of several; punctuation and joining characters do not.
        symbols = "".join(sign if category(sign) == "So" else " " for sign in text).split()
        words = dict.fromkeys([*re.findall(r"[\w'-]+", text), *symbols])
        return [w for w in words if unknown in self.tokenizer(w, add_special_tokens=False).input_ids]

    @property
    def knows_whole_words(self) -> bool:
        """Whether the vocabulary is of whole words, so that one that is not in it cannot be spelled, either."""
        return isinstance(getattr(getattr(self.tokenizer, "backend_tokenizer", None), "model", None), WordLevel)

    def inputs(self, prompt: Prompt, kept: Tensor, vectors: Tensor, planes: Tensor | None = None) -> dict[str, Any]:
        """What transformers' `generate` and `forward` take: the prompt with the kept tokens only, in a batch of B.

        Every token keeps the id and the position that it has in the unpruned prompt (see `kept_positions`).

        Args:
            kept: (B, K) int64, each row ascending: the visual tokens that stay.
            vectors: (B, K, D), the vectors that stand there.
            planes: (P, B, K, D), their further features, if the family has any.
        """
        places, (batch, count) = prompt.places(kept), kept.shape
        ids, visual = prompt.ids[places], prompt.visual[places]
        # Where each visual token is among the kept ones, which those that always stay follow.
        among = torch.searchsorted(kept.cpu(), visual.clamp(min=0))
        among = torch.where(visual < prompt.tokens, among, visual - prompt.tokens + count).to(self.device)
        if prompt.fixed is not None:
            vectors = torch.cat([vectors, prompt.fixed.to(vectors).expand(batch, -1, -1)], dim=1)
            if planes is not None:
                planes = F.pad(planes, (0, 0, 0, len(prompt.fixed)))
        outputs = {}
        for token, name in self.visual_tokens.items():
            chosen = [row[there] for row, there in zip(among, (ids == token).to(self.device), strict=True)]
            if sum(map(len, chosen)):
                further = None if planes is None else [planes[:, row, chosen[row]] for row in range(batch)]
                outputs[name] = self.encoder_output(
                    name,
                    [vectors[row, chosen[row]] for row in range(batch)],
                    None if further is None else torch.cat(further, dim=1),
                )
        positions = self.kept_positions(prompt, places).to(self.device)
        return {
            "input_ids": ids.to(self.device),
            "attention_mask": torch.ones_like(ids, device=self.device),
            "position_ids": positions if len(positions) > 1 else positions[0],
            "mm_encoder_outputs": outputs,
        }

    def kept_positions(self, prompt: Prompt, places: Tensor) -> Tensor:
        """The original positions (axes, B, S') of the tokens at `places` (B, S') of the unpruned sequence.

        If the unpruned sequence has more positions than the model supports, they are closed up, if they have one axis.

        Raises:
            UsageError: more positions than the model has.
        """
        most, count = self.text_config.max_position_embeddings, places.shape[1]
        if int(prompt.positions.max()) < most:
            return prompt.positions[:, places]
        if count > most or len(prompt.positions) > 1:
            takes = f"{count} tokens" if count > most else f"positions up to {int(prompt.positions.max())}"
            less = (
                "look at fewer frames, keep less or forget earlier questions"
                if prompt.turns
                else "look at fewer frames or keep less"
            )
            raise UsageError(f"The prompt takes {takes}, and this model reads at most {most}: {less}.")
        return torch.arange(count).expand(1, len(places), -1)
