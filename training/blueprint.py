"""What the demo models share: vocabulary, the codes that visual tokens are trained to match, and `Blueprint`.

A `Blueprint` defines what is specific to a family. The checkpoints are ordinary ones of transformers' classes; nothing
here is needed to run them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from flashvlm.demo.questions import Question
from flashvlm.demo.world import DIRECTIONS, KIND_OF, NAMES
from training.drawing import draw_shape
from training.labels import CellLabels
from training.shapes import COLOURS, SHAPE_WORDS, SHAPES, ShapeImage, shape_labels

WIDTH = 256
# How often easy-vqa's images are drawn instead of clips, and how many of them such a batch of questions is about.
SHAPES_SHARE, SHAPES_AT_ONCE = 0.16, 12
# How often a clip is in natural conditions, and how often such clips have a brief object.
NATURAL_SHARE, BRIEF_SHARE = 0.5, 0.25
# How many special tokens each family has, so that the words after them have the same ids and codes in all families.
SPECIAL = 8

# Every word of the world. The index in this list determines the direction that the encoder is trained to use for the
# word (`Codes`), so new words go to the end of `SHAPE_WORDS`; any other change requires training from scratch.
WORDS = """
    which is there what in the video do you see name way does move direction of where go moves object moving
    goes position part picture start at end how many are count appears first comes last happening visible located
    happens describe to dog cat cow elephant penguin frog turtle butterfly car bus bicycle airplane rocket boat
    apple banana pizza carrot cake burger umbrella guitar key balloon book clock animal vehicle food thing
    animals vehicles foods shown objects left right up down none one two three four top middle bottom a an yes
    no nowhere stays still and then nothing user assistant system
""".split()  # noqa: SIM905


def build_tokenizer(special: tuple[str, ...], **roles: str) -> PreTrainedTokenizerFast:
    """One token per word, ignoring case and punctuation; unknown words become the last special token.

    Args:
        special: the `SPECIAL` tokens that stand for no word.
        roles: which tokens begin, end and pad: `eos_token` and so on.
    """
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, *SHAPE_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[-1]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[?.!,;:\"]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=special[-1],
        additional_special_tokens=list(special[1:-1]),
        model_max_length=32768,
        **roles,
    )


class Codes:
    """What a visual token should be, given what it shows: a sum of orthogonal unit directions.

    A token of a dog that moves left is the embedding of the *word* dog, plus a share of the words animal and left, plus
    a share of the directions for the dog's location. Background is the word nothing plus its location. So the cosine of
    a visual token with a word of the question means what the method assumes it to mean.
    """

    KIND, MOTION, PLACE, COLOUR = 0.4, 0.45, 0.35, 0.8
    ANCHORS = 6

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        size, places = len(tokenizer), 2 * self.ANCHORS
        if size + places > WIDTH:
            raise ValueError(f"{size} words and {places} places do not fit into {WIDTH} directions.")
        noise = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(20251220), dtype=torch.float64)
        directions = torch.linalg.qr(noise).Q.T.float()
        # The words of easy-vqa were added later: they come after the places, so that the others kept their codes.
        common = SPECIAL + len(WORDS)
        self.words = torch.cat([directions[:common], directions[common + places : size + places]])
        self.rows = directions[common : common + self.ANCHORS]
        self.columns = directions[common + self.ANCHORS : common + places]

        def of(word: str) -> Tensor:
            return self.words[tokenizer.convert_tokens_to_ids(word)]

        # The last entry of each (label -1) stands for background, no direction or no colour.
        self.names = torch.stack([*map(of, NAMES), *map(of, SHAPES), of("nothing")])
        things = [of(name) + self.KIND * of(KIND_OF[name]) for name in NAMES]
        self.things = torch.stack([*things, *map(of, SHAPES), of("nothing")])
        self.motions = torch.stack([*(of(way) for way in DIRECTIONS), torch.zeros(WIDTH)])
        self.colours = torch.stack([*map(of, COLOURS), torch.zeros(WIDTH)])

    def turned(self, turn: Tensor) -> Codes:
        """The same words, and everything that stands for what tokens show multiplied by an orthogonal matrix."""
        other = copy(self)
        for name in ("rows", "columns", "names", "things", "motions", "colours"):
            setattr(other, name, getattr(self, name) @ turn.T)
        return other

    def _shares(self, at: Tensor) -> Tensor:
        """The weight of each anchor for these coordinates in 0..1, (..., ANCHORS); at most two neighbours have any."""
        scaled = at.clamp(0, 1) * (self.ANCHORS - 1)
        return (1 - (scaled.unsqueeze(-1) - torch.arange(self.ANCHORS)).abs()).clamp(min=0)

    def places(self, labels: CellLabels) -> tuple[Tensor, Tensor]:
        """The weight of each row and column anchor for what each cell shows, (groups, rows, columns, ANCHORS) each."""
        return self._shares(torch.from_numpy(labels.y).float()), self._shares(torch.from_numpy(labels.x).float())

    def targets(self, labels: CellLabels) -> Tensor:
        """The ideal tokens, (groups, rows, columns, WIDTH) float32; an unclear cell counts as background here."""
        thing = torch.from_numpy(np.maximum(labels.thing, -1))
        motion = torch.from_numpy(np.where(labels.motion < 0, 4, labels.motion))
        down, across = self.places(labels)
        place = down @ self.rows + across @ self.columns
        tokens = self.things[thing] + self.MOTION * self.motions[motion] + self.PLACE * place
        if labels.colour is not None:
            tokens = tokens + self.COLOUR * self.colours[torch.from_numpy(labels.colour)]
        return tokens

    def presence(self, labels: CellLabels) -> Tensor:
        """Which of `names` each group shows, (groups, names) of 0 and 1; the last one if it shows nothing else."""
        shown = torch.from_numpy(labels.thing).flatten(1).unsqueeze(-1) == torch.arange(len(self.names) - 1)
        shown = shown.any(1)
        return torch.cat([shown, ~shown.any(1, keepdim=True)], dim=1).float()

    def summaries(self, labels: CellLabels) -> Tensor:
        """What each group's class token should be, (groups, WIDTH): the sum of what the group shows, without places."""
        summary = self.presence(labels) @ self.things
        if labels.colour is not None:
            colour = torch.from_numpy(labels.colour).flatten(1).amax(1)
            summary = summary + self.COLOUR * self.colours[colour]
        return summary


@dataclass(frozen=True)
class Shown:
    """One clip as training sees it: what its groups show, and the encoder's input if it was rendered.

    `ways` (tokens,), for families whose groups do not show motion: the index in `DIRECTIONS` of how the object in a
    token has moved since an earlier group, 4 for still objects and background, -1 where this is unknown.
    """

    labels: CellLabels
    questions: list[Question]
    pixels: Tensor | None
    ways: Tensor | None = None


class Blueprint(ABC):
    """One demo model: what is specific to its family, for the training that all share."""

    name: ClassVar[str]
    steps: ClassVar[dict[str, int]]
    video_token: ClassVar[str]
    # Tokens of each group that come before its cells and summarise what it shows.
    class_tokens: ClassVar[int] = 0
    # Whether a single group can show which way an object moves.
    shows_motion: ClassVar[bool] = True
    # The learning rate of the patch embedding, as a share of the others'.
    patch_rate: ClassVar[float] = 1.0

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.build_tokenizer()

    @cached_property
    def codes(self) -> Codes:
        return Codes(self.tokenizer)

    @abstractmethod
    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, with its chat template."""

    @abstractmethod
    def build_model(self) -> Any:
        """The model before training, its word embeddings set to the codes of `Codes` and tied."""

    @abstractmethod
    def eyes(self, model: Any) -> torch.nn.Module:
        """What the stage `eyes` trains: the encoder and the projection of its features to the language model."""

    def reader(self, model: Any) -> torch.nn.Module:
        """What the stages `words` and `answers` train."""
        return model.model.language_model

    def progress(self, stage: str, share: float) -> None:  # noqa: B027
        """Note, before each step of a stage, what share of it is done."""

    @abstractmethod
    def see(self, model: Any, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """The encoder on many groups of one grid at once: (G, ...) to (G, class tokens + cells, WIDTH)."""

    @abstractmethod
    def draw_eyes(self, rng: np.random.Generator, *, small: bool) -> tuple[tuple[int, int], list[Shown]]:
        """Some groups of random clips, rendered, and the grid (rows, columns) of their cells."""

    @abstractmethod
    def draw_clips(
        self, rng: np.random.Generator, questions: int, *, small: bool, pixels: bool
    ) -> tuple[tuple[int, int], list[Shown]]:
        """Random clips of one grid and length, with this many questions each; rendered if `pixels` are wanted."""

    def draw_shapes(
        self, rng: np.random.Generator, many: int, questions: int, grid: tuple[int, int], *, pixels: bool
    ) -> list[Shown]:
        """`many` of easy-vqa's images, one group with `questions` questions each; rendered if `pixels` are wanted."""
        drawn = []
        for _ in range(many):
            image, asked = draw_shape(rng, questions)
            seen = self.shape_input(image, grid) if pixels else None
            drawn.append(Shown(shape_labels(image, *grid), asked, seen))
        return drawn

    @abstractmethod
    def shape_input(self, image: ShapeImage, grid: tuple[int, int]) -> Tensor:
        """The encoder's input for one of easy-vqa's images, which are square."""

    @abstractmethod
    def positions(self, before: int, groups: int, grid: tuple[int, int], length: int) -> tuple[Tensor, Tensor]:
        """Positions (axes, S) of the tokens before the video and of the video, and (axes, L) of the text after them."""

    @abstractmethod
    def finish(self, model: Any) -> None:
        """What remains to be done once the parts of the model are trained."""

    @abstractmethod
    def settings(self) -> dict[str, dict[str, Any]]:
        """The preprocessor files of the checkpoint, by name."""

    def save(self, model: Any, folder: Path) -> None:
        """Write an ordinary checkpoint folder: bf16 safetensors, tokenizer, chat template, preprocessor settings."""
        self.finish(model)
        # Every question is trained with the video alone before it.
        model.config.single_turn = True
        model.generation_config.do_sample = False
        model.generation_config.eos_token_id = model.config.text_config.eos_token_id
        model.generation_config.pad_token_id = model.config.text_config.pad_token_id
        model.to(torch.bfloat16).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for name, settings in self.settings().items():
            (folder / name).write_text(json.dumps(settings, indent=2) + "\n")
