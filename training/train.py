"""Train a demo checkpoint: `python -m training.train --model video-llava --out runs/demo-video-llava`.

There are three stages; running the same command again resumes a stage where it stopped:

- `eyes`: the vision encoder alone; every visual token should match the code of what its cell shows (`blueprint.Codes`);
- `words`: the language model alone, answering questions from ideal tokens, which cost nothing to make;
- `answers`: the language model on the real tokens of the trained encoder, unpruned.

With `--start FOLDER` they begin with the weights of that checkpoint, and any of them may be left out. `eyes` and
`words` do not depend on each other and may run at the same time (`--stage`). Training uses a GPU if there is one,
otherwise the CPU, and bf16 autocast where that is fast. The batch of every step has its own seed, so a resumed run
continues in the same way.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig

from flashvlm.demo.questions import Question
from flashvlm.demo.world import NAMES
from flashvlm.precision import quick_dtype
from training.blueprint import Blueprint
from training.labels import CellLabels
from training.muon import Muon
from training.qwen2_vl import Qwen2VL
from training.unaligned import Unaligned
from training.video_llava import VideoLlava

BLUEPRINTS: dict[str, type[Blueprint]] = {"qwen2-vl": Qwen2VL, "video-llava": VideoLlava, "unaligned": Unaligned}
STAGES = ("eyes", "words", "answers")
LEARNING_RATES = {"eyes": 4e-3, "words": 3e-3, "answers": 1.5e-3}
SEEDS = {"eyes": 1, "words": 2, "answers": 3}
QUESTIONS = 16
SMALL_SHARE = {"eyes": 0.6, "words": 0.865, "answers": 0.0}
SAVE_EVERY = 250


def read(
    model: Any, shared: Tensor, shared_at: Tensor, texts: Tensor, texts_at: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the language model on several questions about each clip at once.

    Args:
        shared: (B, S, WIDTH) embeddings that all questions see: the tokens before the video, and the video.
        shared_at: (axes, S) their positions.
        texts: (B, Q, L) token ids of each question with its answer; each sees only `shared` and itself.
        texts_at: (axes, L) their positions.

    Returns:
        (B, Q, L, WIDTH) last hidden states of the texts, and the normalised input of the second layer for `shared`
        (B, S, WIDTH) and for the texts (B, Q, L, WIDTH).
    """
    language_model = model.model.language_model
    batch, many, length = texts.shape
    count = shared.shape[1]
    states = torch.cat([shared, language_model.embed_tokens(texts).flatten(1, 2)], dim=1)
    positions = torch.cat([shared_at, texts_at.repeat(1, many)], dim=1)
    # Which question a token belongs to: -1 for none. Each sees what comes before it and is shared, or its question's.
    question = torch.cat([torch.full((count,), -1), torch.arange(many).repeat_interleave(length)]).to(states.device)
    place = torch.arange(len(question), device=states.device)
    sees = (place[:, None] >= place) & ((question == -1) | (question == question[:, None]))
    output = language_model(
        inputs_embeds=states,
        position_ids=positions.unsqueeze(1).expand(-1, batch, -1) if len(positions) > 1 else positions,
        attention_mask=sees.expand(batch, 1, -1, -1),
        output_hidden_states=True,
        use_cache=False,
    )
    first = language_model.layers[1].input_layernorm(output.hidden_states[1])
    texts_of = [part[:, count:].unflatten(1, (many, length)) for part in (output.last_hidden_state, first)]
    return texts_of[0], first[:, :count], texts_of[1]


class Conversation:
    """A model's chat template, split at the video: what comes before it, and the question with its answer."""

    def __init__(self, tokenizer: Any, video_token: str) -> None:
        content = [{"type": "video"}, {"type": "text", "text": "\x00"}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        self.tokenizer = tokenizer
        before, after = text.split(video_token)
        self.before = tokenizer(before).input_ids
        self.lead, self.follow = (self._ids(part) for part in after.split("\x00"))
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def texts(self, questions: list[list[Question]]) -> tuple[Tensor, Tensor]:
        """(B, Q, L) token ids, and (B, Q, L) labels: the next token if it belongs to the answer, else -100."""
        rows = []
        for question in (question for row in questions for question in row):
            asked = [*self.lead, *self._ids(question.text), *self.follow]
            rows.append((asked, [*self._ids(question.answer), self.end]))
        length = max(len(asked) + len(answer) for asked, answer in rows) - 1
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), -100)
        for row, (asked, answer) in enumerate(rows):
            whole = asked + answer
            ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
            labels[row, len(asked) - 1 : len(whole) - 1] = torch.tensor(answer)
        shape = (len(questions), len(questions[0]), length)
        return ids.view(shape), labels.view(shape)


def eyes_loss(
    blueprint: Blueprint, model: Any, rng: np.random.Generator, *, small: bool
) -> tuple[Tensor, dict[str, Any]]:
    """The loss of visual tokens, for a few groups of some clips, against the codes of what their cells show."""
    codes, device = blueprint.codes, model.device
    grid, drawn = blueprint.draw_eyes(rng, small=small)
    labels = [shown.labels for shown in drawn]

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts).to(device)

    seen = blueprint.see(model, joined([shown.pixels for shown in drawn if shown.pixels is not None]), grid).float()
    tokens = seen[:, blueprint.class_tokens :].flatten(0, 1)
    target = joined([codes.targets(label).flatten(0, 2) for label in labels])
    thing, motion = (
        joined([torch.from_numpy(getattr(label, name)).flatten() for label in labels]) for name in ("thing", "motion")
    )
    fore, clear = thing >= 0, thing != -2
    # If groups can show motion, the cells of an object whose direction its group does not show are left out.
    told = motion >= 0 if blueprint.shows_motion else torch.ones_like(fore)
    weight = torch.where(fore, 1.0, 0.12) * clear * told
    distance = ((tokens - target) ** 2).sum(-1)
    name = F.cross_entropy(
        tokens @ codes.names.to(device).T * 8, thing.clamp(min=-1) % len(codes.names), reduction="none"
    )
    # Rotary positions alone do not give a token its location: it has to be trained to infer that from the picture's
    # edges.
    shares = joined([torch.stack(codes.places(label), dim=3).flatten(0, 2) for label in labels])  # (tokens, 2, ANCHORS)
    anchors = torch.stack([codes.rows, codes.columns]).to(device)
    guesses = torch.einsum("nd,pad->npa", tokens, anchors) * 12
    where = F.cross_entropy(guesses.flatten(0, 1), shares.flatten(0, 1), reduction="none").view(-1, 2).sum(-1)
    placed = torch.where(fore, 3.0, 1.0) * clear
    loss = ((distance + 0.5 * name) * weight).sum() / weight.sum() + (where * placed).sum() / placed.sum()
    right = (tokens @ codes.names.to(device).T).argmax(-1) == thing % len(codes.names)
    figures = {
        "distance": distance[fore].mean(),
        "names": right[fore].float().mean(),
        "places": (guesses.argmax(-1) == shares.argmax(-1)).all(-1)[fore].float().mean(),
        "background": right[thing == -1].float().mean(),
    }
    if blueprint.shows_motion:
        ways = tokens[fore] @ codes.motions.to(device).T
        way = F.cross_entropy(ways * 12, motion[fore].clamp(min=0), reduction="none")
        loss = loss + (way * (motion[fore] >= 0)).sum() / fore.sum().clamp(min=1)
        moved = (motion[fore] >= 0) & (motion[fore] < 4)
        figures["motion"] = (ways.argmax(-1) == motion[fore])[moved].float().mean()
    if blueprint.class_tokens:
        summary, present = (joined([of(label) for label in labels]) for of in (codes.summaries, codes.presence))
        called = seen[:, 0] @ codes.names.to(device).T
        presence = F.binary_cross_entropy_with_logits((called - 0.5) * 8, present, reduction="none").sum(-1).mean()
        loss = loss + 0.3 * ((seen[:, 0] - summary) ** 2).sum(-1).mean() + 0.3 * presence
        figures["summaries"] = ((called > 0.5) == (present > 0.5)).all(-1).float().mean()
    return loss, {name: figure.detach() for name, figure in figures.items()}


def ideal_tokens(blueprint: Blueprint, labels: CellLabels, rng: np.random.Generator) -> Tensor:
    """The tokens that a perfect encoder would give for one clip, with some noise: (tokens, WIDTH)."""
    codes = blueprint.codes
    tokens = codes.targets(labels).flatten(1, 2)
    # A cell that is not clearly an object or background gets a bit of a random object.
    unclear = torch.from_numpy(labels.thing == -2).flatten(1)
    share = torch.rand(int(unclear.sum()), 1) * 0.7
    tokens[unclear] += share * codes.things[torch.from_numpy(rng.integers(0, len(NAMES), len(share)))] * 0.3
    if blueprint.class_tokens:
        tokens = torch.cat([codes.summaries(labels).unsqueeze(1), tokens], dim=1)
    tokens = tokens.flatten(0, 1)
    return tokens + torch.randn(tokens.shape) * (0.25 / math.sqrt(tokens.shape[-1]))


def answer_loss(
    blueprint: Blueprint,
    model: Any,
    conversation: Conversation,
    rng: np.random.Generator,
    *,
    small: bool,
    ideal: bool,
) -> tuple[Tensor, dict[str, Any]]:
    """The loss of answers to questions about a few clips, from ideal tokens or from the encoder's."""
    grid, drawn = blueprint.draw_clips(rng, QUESTIONS, small=small, pixels=not ideal)
    if ideal:
        video = torch.stack([ideal_tokens(blueprint, shown.labels, rng) for shown in drawn]).to(model.device)
    else:
        pixels = torch.cat([shown.pixels for shown in drawn if shown.pixels is not None]).to(model.device)
        # What is not trained gets no gradients: the encoder, apart from what belongs to `Blueprint.reader`.
        video = blueprint.see(model, pixels, grid).view(len(drawn), -1, blueprint.codes.words.shape[1])
    questions = [shown.questions for shown in drawn]
    texts, labels = (x.to(model.device) for x in conversation.texts(questions))
    before = model.get_input_embeddings()(torch.tensor(conversation.before, device=model.device))
    shared = torch.cat([before.expand(len(drawn), -1, -1), video.to(before.dtype)], dim=1)
    groups = len(drawn[0].labels.thing)
    shared_at, texts_at = (x.to(model.device) for x in blueprint.positions(len(before), groups, grid, texts.shape[-1]))
    hidden, first, first_words = read(model, shared, shared_at, texts, texts_at)
    asked = labels != -100
    logits = F.linear(hidden[asked], model.get_input_embeddings().weight).float()
    losses = F.cross_entropy(logits, labels[asked], reduction="none")
    # A long answer weighs more than a short one, but each of its words less.
    weights = asked.sum(-1, keepdim=True).rsqrt().expand(asked.shape)[asked]
    loss = (losses * weights).sum() / weights.sum()
    figures: dict[str, Any] = {}
    ways = torch.stack([shown.ways for shown in drawn if shown.ways is not None]) if drawn[0].ways is not None else None
    if ways is not None and (ways >= 0).any():
        # If tokens do not show motion, the first layer should infer it from earlier frames.
        told, seen = ways >= 0, first[:, len(before) :]
        guesses = seen[told.to(model.device)].float() @ blueprint.codes.motions.to(model.device).T
        # Most of a picture does not move.
        shares = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.25], device=model.device)
        loss = loss + 0.2 * F.cross_entropy(guesses, ways[told].to(model.device), weight=shares)
        # It should also leave words recognisable, so that a direction word can find what moves that way.
        kept = F.linear(first_words[texts != conversation.pad], model.get_input_embeddings().weight).float()
        loss = loss + 0.1 * F.cross_entropy(kept, texts[texts != conversation.pad])
        moved = ways[told] < 4
        figures["ways"] = (guesses.argmax(-1).cpu() == ways[told])[moved].float().mean()
    with torch.no_grad():
        wrong = torch.zeros(asked.shape, device=asked.device)
        wrong[asked] = (logits.argmax(-1) != labels[asked]).float()
        right = (wrong.sum(-1) == 0).float().flatten().tolist()
    families: dict[str, list[float]] = {}
    for question, ok in zip((q for row in questions for q in row), right, strict=True):
        families.setdefault(question.family, []).append(ok)
    return loss, figures | {family: torch.tensor(oks).mean() for family, oks in families.items()}


def optimizers(
    model: torch.nn.Module, lr: float, patch_rate: float = 1.0, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, in `dtype`, AdamW for the rest; this learns about twice as fast as AdamW alone.

    Args:
        patch_rate: the learning rate of the patch embedding, as a share of `lr`. AdamW moves all of its weights by
            similar amounts, and a patch of one colour adds them all up.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    few, patches = [p for p in trained if p.ndim < 2], [p for p in trained if p.ndim > 2]
    groups = [{"params": few, "rate": 1.0}, {"params": patches, "rate": patch_rate}]
    return [
        Muon([p for p in trained if p.ndim == 2], lr=lr, weight_decay=0.01, dtype=dtype),
        torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def schedule(step: int, steps: int) -> float:
    """The learning rate's factor: warm-up in the first 2 % of steps, constant, linear decay to 0 in the last 30 %."""
    return min(1.0, (step + 1) / (0.02 * steps), (steps - step) / (0.3 * steps))


def begin_from(model: Any, checkpoint: Path) -> None:
    """Load a checkpoint's weights except word embeddings, which are fixed codes (there may be more words by now)."""
    if AutoConfig.from_pretrained(checkpoint).model_type != model.config.model_type:
        raise SystemExit(f"{checkpoint} is of another model.")
    weights = type(model).from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    words = ("embed_tokens.weight", "lm_head.weight")
    model.load_state_dict({name: value for name, value in weights.items() if not name.endswith(words)}, strict=False)


def load_trained(parts: dict[str, torch.nn.Module], out: Path, start: Path | None) -> None:
    """Load the final weights of each part's stage; with `start`, a stage that was not run is skipped."""
    for stage, part in parts.items():
        path = out / f"{stage}.pt"
        if start is None or path.exists():
            part.load_state_dict(torch.load(path, weights_only=True)["weights"])


def train(
    blueprint: Blueprint,
    stage: str,
    out: Path,
    steps: int,
    lr: float,
    stop_after: int | None = None,
    start: Path | None = None,
    first_batch: int = 0,
) -> None:
    """Run or resume one stage of `steps` (this time up to step `stop_after`); its state is kept in `out`/`stage`.pt.

    With `start`, training begins with the weights of this checkpoint, and no step uses small clips. The batches are
    those from number `first_batch` on: a checkpoint that was trained on the first ones would learn little from them.
    """
    out.mkdir(parents=True, exist_ok=True)
    stop = steps if stop_after is None else stop_after
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # A CPU that emulates bf16 products takes over ten times longer with them.
    quick = quick_dtype(torch.device(device)) == torch.bfloat16
    torch.manual_seed(SEEDS[stage])
    model, conversation = blueprint.build_model(), Conversation(blueprint.tokenizer, blueprint.video_token)
    if start is not None:
        begin_from(model, start)
    small_until = 0 if start is not None else SMALL_SHARE[stage] * steps
    eyes, text = blueprint.eyes(model), model.model.language_model
    reader = blueprint.reader(model)
    trained = eyes if stage == "eyes" else reader
    model.requires_grad_(False)
    trained.requires_grad_(True)
    text.embed_tokens.requires_grad_(False)
    if stage == "answers":
        load_trained({"eyes": eyes, "words": reader}, out, start)
    model.to(device)
    tools = optimizers(model, lr, blueprint.patch_rate, torch.bfloat16 if quick else torch.float32)
    begin, path = 0, out / f"{stage}.pt"
    origin = {"start": None if start is None else str(start), "first_batch": first_batch}
    if path.exists():
        state = torch.load(path, weights_only=True)
        if {"start": state.get("start"), "first_batch": state.get("first_batch", 0)} != origin:
            raise SystemExit(f"{path} began with other weights or batches: give --out another folder.")
        trained.load_state_dict(state["weights"])
        for tool, saved in zip(tools, state["optimizers"], strict=True):
            tool.load_state_dict(saved)
        begin = state["step"]
    seen: dict[str, list[float]] = {}
    since = time.monotonic()
    for step in range(begin, stop):
        rng = np.random.default_rng([SEEDS[stage], first_batch + step])
        torch.manual_seed(first_batch + step)
        blueprint.progress(stage, step / steps)
        with torch.autocast(device, torch.bfloat16, enabled=quick):
            small = step < small_until
            if stage == "eyes":
                loss, figures = eyes_loss(blueprint, model, rng, small=small)
            else:
                loss, figures = answer_loss(blueprint, model, conversation, rng, small=small, ideal=stage == "words")
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        for tool in tools:
            for group in tool.param_groups:
                group["lr"] = lr * schedule(step, steps) * group.get("rate", 1.0)
            tool.step()
            tool.zero_grad(set_to_none=True)
        for name, value in {"loss": loss.detach(), **figures}.items():
            if not torch.isnan(value):
                seen.setdefault(name, []).append(float(value))
        done = step + 1
        if done % 50 == 0 or done == stop:
            means = "  ".join(f"{name} {np.mean(values):.3f}" for name, values in seen.items())
            print(f"{stage} {done}/{steps}  {time.monotonic() - since:.0f} s  {means}", flush=True)
            seen = {}
        if done % SAVE_EVERY == 0 or done == stop:
            state = {
                "step": done,
                **origin,
                "weights": trained.state_dict(),
                "optimizers": [tool.state_dict() for tool in tools],
            }
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BLUEPRINTS, default="qwen2-vl")
    parser.add_argument("--out", type=Path, help="folder of the run's state and checkpoint (default: runs/NAME)")
    parser.add_argument("--stage", choices=[*STAGES, "save", "all"], default="all")
    parser.add_argument("--start", type=Path, help="begin with the weights of this checkpoint folder, not with chance")
    parser.add_argument("--steps", type=int, help="steps of the stage, for a shorter run than the checkpoint's")
    parser.add_argument("--lr", type=float, help="learning rate of the stage")
    parser.add_argument("--first-batch", type=int, default=0, metavar="N", help="train on batches from this number on")
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    blueprint = BLUEPRINTS[arguments.model]()
    out: Path = arguments.out or Path("runs") / blueprint.name
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        if stage in STAGES:
            steps = arguments.steps or blueprint.steps[stage]
            lr = arguments.lr or LEARNING_RATES[stage]
            train(blueprint, stage, out, steps, lr, start=arguments.start, first_batch=arguments.first_batch)
    if arguments.stage in ("save", "all", "answers"):
        model = blueprint.build_model()
        if arguments.start is not None:
            begin_from(model, arguments.start)
        load_trained({"eyes": blueprint.eyes(model), "answers": blueprint.reader(model)}, out, arguments.start)
        blueprint.save(model, out / "checkpoint")


if __name__ == "__main__":
    main()
