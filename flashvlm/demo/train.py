"""Train the demo checkpoint from nothing: `python -m flashvlm.demo.train --out runs/demo`.

Three stages, each resumed where it stopped when the command is given again:

- `eyes`: the vision encoder alone, every visual token held to what its cell shows (`blueprint.Codes`);
- `words`: the language model alone, answering questions from ideal tokens, which cost nothing to make;
- `answers`: the language model on what the trained encoder really says, unpruned.

`eyes` and `words` do not need one another and may run at the same time (`--stage`). Runs in bf16 on a GPU where there
is one, otherwise on the CPU. Every step's batch is made from its seed, so a resumed run goes the same way.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashvlm.demo.blueprint import CELL, IMAGE_MEAN, IMAGE_STD, MERGE, PATCH, Codes, build_model, build_tokenizer, save
from flashvlm.demo.questions import FAMILIES, Question, ask
from flashvlm.demo.world import ASPECTS, NAMES, Scene, cell_labels, make_scene, render, sample_times

STEPS = {"eyes": 3200, "words": 6600, "answers": 2800}
LEARNING_RATES = {"eyes": 4e-3, "words": 3e-3, "answers": 1.5e-3}
SEEDS = {"eyes": 1, "words": 2, "answers": 3}
QUESTIONS = 16
SMALL_SHARE = {"eyes": 0.6, "words": 0.865, "answers": 0.0}
SAVE_EVERY = 250
# Grids (rows, columns of tokens) that `pixels.smart_resize` gives the aspects of `ASPECTS` at the demo's pixel limits.
GRIDS = {
    (1, 1): (8, 8), (4, 3): (6, 9), (3, 4): (9, 6), (16, 9): (6, 10), (9, 16): (10, 6),
    (5, 4): (7, 8), (4, 5): (8, 7), (3, 2): (6, 9),
}  # fmt: skip
# How often a clip has so many frames; first with short ones, which teach nearly as much for a fraction of the time.
FRAMES = {1: 4, 4: 8, 8: 12, 12: 12, 16: 14, 24: 14, 32: 14, 48: 10, 64: 8}
SHORT_FRAMES = {1: 6, 4: 20, 8: 30, 12: 24, 16: 12, 24: 8}
# The first part of a stage works on small pictures, in which things are as large but fill more of them.
ZOOM = 1.6
SMALL_GRIDS = {(1, 1): (5, 5), (5, 4): (5, 6), (4, 5): (6, 5)}
# Families that are harder to learn come up more often.
WEIGHTS = {
    "moment": 1.5, "count": 1.6, "caption": 1.7, "first": 2.0, "last": 1.0, "start": 1.6, "end": 1.4, "mover": 1.4,
    "kind": 0.5, "exist": 0.8, "where": 0.8, "motion": 0.7,
}  # fmt: skip


def through_codec(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What is left of (F, h, w, 3) uint8 frames after an H.264 file of ordinary quality."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": str(int(rng.integers(16, 33)))}
        stream.thread_count = 1
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as source:
        source.streams.video[0].thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])


def draw_scene(
    rng: np.random.Generator, frames: int, aspect: tuple[int, int], **settings: Any
) -> tuple[Scene, np.ndarray]:
    """A scene and when to look at it: as planned, or with every look a little early or late."""
    scene = make_scene(rng, frames=frames, aspect=aspect, **settings)
    times = sample_times(frames)
    if frames > 1 and rng.random() < 0.5:
        times = np.clip(times + rng.uniform(-0.35, 0.35, frames) / frames, 0, 1)
    return scene, times


def draw_patches(scene: Scene, times: np.ndarray, grid: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """The encoder's input for a scene: (groups, patches, values) float32, in the order Qwen2-VL's patches have."""
    height, width = grid[0] * CELL, grid[1] * CELL
    larger = 2 if rng.random() < 0.15 else 1
    frames = render(scene, times, height * larger, width * larger)
    if rng.random() < 0.3:
        frames = through_codec(frames, rng)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if larger > 1:
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    if len(pixels) % 2:
        pixels = torch.cat([pixels, pixels[-1:]])
    mean, std = torch.tensor(IMAGE_MEAN).view(3, 1, 1), torch.tensor(IMAGE_STD).view(3, 1, 1)
    pixels = (pixels / 255 - mean) / std
    groups, (rows, columns) = len(pixels) // 2, grid
    patches = pixels.view(groups, 2, 3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    return patches.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(groups, rows * columns * MERGE**2, -1)


def see(visual: Any, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The vision encoder on many groups of one grid at once: (G, P, values) -> (G, P / 4, WIDTH).

    What `visual.forward` computes group by group, from the same modules.
    """
    rows, columns = grid[0] * MERGE, grid[1] * MERGE
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    order = [axis.reshape(rows // MERGE, MERGE, columns // MERGE, MERGE).transpose(1, 2).flatten() for axis in (y, x)]
    position_ids = torch.stack(order, dim=-1).to(patches.device)
    with torch.no_grad():
        cos, sin = visual.rotary_pos_emb(patches, position_ids)
    hidden = F.linear(patches, visual.patch_embed.proj.weight.flatten(1))
    groups, count, _ = hidden.shape
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).view(groups, count, 3, attention.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(groups, count, -1)
        hidden = hidden + attention.proj(mixed)
        hidden = hidden + block.mlp(block.norm2(hidden))
    merger = visual.merger
    return merger.mlp(merger.ln_q(hidden).view(groups, count // MERGE**2, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions; `cos` and `sin` broadcast to `x`."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def read(model: Any, shared: Tensor, shared_at: Tensor, texts: Tensor, texts_at: Tensor) -> Tensor:
    """The language model on several questions to each clip at once.

    Args:
        shared: (B, S, WIDTH) embeddings of what all questions see: the tokens before the video, and the video.
        shared_at: (3, S) their M-RoPE positions.
        texts: (B, Q, L) token ids of each question with its answer; each sees `shared` and itself alone.
        texts_at: (L,) their positions, the same on all three axes.

    Returns:
        (B, Q, L, WIDTH) last hidden states, of the texts only.
    """
    text_model = model.model.language_model
    batch, many, length = texts.shape
    with torch.no_grad():
        rotary = [text_model.rotary_emb(shared, at.unsqueeze(1)) for at in (shared_at, texts_at.expand(3, -1))]
        causal = torch.full((length, length), float("-inf"), device=texts.device).triu(1)
    one, two = shared, text_model.embed_tokens(texts).flatten(1, 2)
    for i, layer in enumerate(text_model.layers):
        attention = layer.self_attn
        dim, last = attention.head_dim, i == len(text_model.layers) - 1

        def heads(linear: torch.nn.Module, x: Tensor, dim: int = dim) -> Tensor:
            return linear(x).view(batch, x.shape[1], -1, dim).transpose(1, 2)

        normed = [layer.input_layernorm(x) for x in (one, two)]
        repeats = attention.num_key_value_groups
        keys, values = [], []
        for x, (cos, sin), text in zip(normed, rotary, (False, True), strict=True):
            if text:
                cos, sin = (table.repeat(1, many, 1) for table in (cos, sin))
            keys.append(rotate(heads(attention.k_proj, x), cos, sin).repeat_interleave(repeats, 1))
            values.append(heads(attention.v_proj, x).repeat_interleave(repeats, 1))
            if text:
                query_two = rotate(heads(attention.q_proj, x), cos, sin)
            elif not last:
                query_one = rotate(heads(attention.q_proj, x), cos, sin)

        def own(x: Tensor, dim: int = dim) -> Tensor:
            return x.reshape(batch, -1, many, length, dim)

        scores = torch.cat(
            [
                own(query_two @ keys[0].transpose(-1, -2), dim=shared.shape[1]),
                own(query_two) @ own(keys[1]).transpose(-1, -2) + causal,
            ],
            dim=-1,
        )
        weights = (scores.float() * attention.scaling).softmax(-1).to(values[0].dtype)
        mixed = weights[..., : shared.shape[1]].flatten(2, 3) @ values[0]
        mixed = mixed + (weights[..., shared.shape[1] :] @ own(values[1])).flatten(2, 3)
        two = two + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        two = two + layer.mlp(layer.post_attention_layernorm(two))
        # Nothing after the last layer looks at the video.
        if not last:
            mixed = F.scaled_dot_product_attention(query_one, keys[0], values[0], is_causal=True)
            one = one + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            one = one + layer.mlp(layer.post_attention_layernorm(one))
    return text_model.norm(two).view(batch, many, length, -1)


def draw_questions(scene: Scene, rng: np.random.Generator, many: int) -> list[Question]:
    """`many` questions on a scene, the families by `WEIGHTS`."""
    weights = np.array([WEIGHTS.get(family, 1.0) for family in FAMILIES])
    found: list[Question] = []
    while len(found) < many:
        question = ask(scene, FAMILIES[rng.choice(len(FAMILIES), p=weights / weights.sum())], rng)
        if question is not None:
            found.append(question)
    return found


class Conversation:
    """The demo's chat template, cut where the video stands: what comes before it, and question with answer."""

    def __init__(self, tokenizer: Any) -> None:
        content = [{"type": "video"}, {"type": "text", "text": "\x00"}]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        self.tokenizer = tokenizer
        before, after = text.split("<|video_pad|>")
        self.before = tokenizer(before).input_ids
        self.lead, self.follow = (tokenizer(part).input_ids for part in after.split("\x00"))
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id

    def texts(self, questions: list[list[Question]]) -> tuple[Tensor, Tensor]:
        """(B, Q, L) token ids, and the (B, Q, L) labels: the next token where it belongs to the answer, else -100."""
        rows = []
        for question in (question for row in questions for question in row):
            asked = [*self.lead, *self.tokenizer(question.text).input_ids, *self.follow]
            rows.append((asked, [*self.tokenizer(question.answer).input_ids, self.end]))
        length = max(len(asked) + len(answer) for asked, answer in rows) - 1
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), -100)
        for row, (asked, answer) in enumerate(rows):
            whole = asked + answer
            ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
            labels[row, len(asked) - 1 : len(whole) - 1] = torch.tensor(answer)
        shape = (len(questions), len(questions[0]), length)
        return ids.view(shape), labels.view(shape)


def positions(before: int, groups: int, grid: tuple[int, int], length: int) -> tuple[Tensor, Tensor]:
    """M-RoPE positions of the shared part (3, S) and of the texts (L,), as the checkpoints of the family have them."""
    t, y, x = torch.meshgrid(torch.arange(groups), torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    video = torch.stack([t.flatten(), y.flatten(), x.flatten()]) + before
    shared = torch.cat([torch.arange(before).expand(3, -1), video], dim=1)
    return shared, torch.arange(length) + int(shared.max()) + 1


def eyes_loss(model: Any, codes: Codes, rng: np.random.Generator, *, small: bool) -> tuple[Tensor, dict[str, Any]]:
    """Hold the tokens of a few groups of some clips to the codes of what their cells show."""
    grids = SMALL_GRIDS if small else GRIDS
    aspect = list(grids)[rng.integers(len(grids))]
    grid = grids[aspect]
    patches, targets, things, motions, places = [], [], [], [], []
    for _ in range(16 if small else 9):
        frames = int(rng.choice([1, 4, 8, 8, 16, 32, 64]))
        scene, times = draw_scene(rng, frames, aspect, **({"zoom": ZOOM, "count": 1} if small else {}))
        # Four groups of a clip teach nearly as much as all of them.
        if len(times) > 8:
            starts = 2 * rng.choice(len(times) // 2, size=4, replace=False)
            times = times[np.sort(np.concatenate([starts, starts + 1]))]
        labels = cell_labels(scene, times, *grid)
        patches.append(draw_patches(scene, times, grid, rng))
        targets.append(codes.targets(labels).flatten(1, 2))
        things.append(torch.from_numpy(labels.thing).flatten(1))
        places.append(torch.stack(codes.places(labels)).flatten(2, 3).transpose(0, 1))
        motions.append(torch.from_numpy(labels.motion).flatten(1))
    device = model.device
    target, thing, motion = (torch.cat(x).flatten(0, 1).to(device) for x in (targets, things, motions))
    tokens = see(model.model.visual, torch.cat(patches).to(device), grid).float().flatten(0, 1)
    fore, clear = thing >= 0, thing != -2
    weight = torch.where(fore, 1.0, 0.12) * clear * (motion >= 0)
    distance = ((tokens - target) ** 2).sum(-1)
    name = F.cross_entropy(
        tokens @ codes.names.to(device).T * 8, thing.clamp(min=-1) % len(codes.names), reduction="none"
    )
    way = F.cross_entropy(tokens[fore] @ codes.motions.to(device).T * 12, motion[fore].clamp(min=0), reduction="none")
    way = (way * (motion[fore] >= 0)).sum() / fore.sum().clamp(min=1)
    # Rotary positions alone tell no token where it is: this it has to be made to find out, from the picture's edges.
    shares = torch.cat(places).transpose(1, 2).flatten(0, 1).to(device)  # (tokens, 2, ANCHORS)
    anchors = torch.stack([codes.rows, codes.columns]).to(device)
    guesses = torch.einsum("nd,pad->npa", tokens, anchors) * 12
    where = F.cross_entropy(guesses.flatten(0, 1), shares.flatten(0, 1), reduction="none").view(-1, 2).sum(-1)
    placed = torch.where(fore, 3.0, 1.0) * clear
    loss = ((distance + 0.5 * name) * weight).sum() / weight.sum() + way + (where * placed).sum() / placed.sum()
    with torch.no_grad():
        right = (tokens @ codes.names.to(device).T).argmax(-1) == thing % len(codes.names)
        moved = fore & (motion >= 0) & (motion < 4)
        figures = {
            "distance": distance[fore].mean(),
            "names": right[fore].float().mean(),
            "places": (guesses.argmax(-1) == shares.argmax(-1)).all(-1)[fore].float().mean(),
            "background": right[thing == -1].float().mean(),
            "motion": ((tokens @ codes.motions.to(device).T).argmax(-1) == motion)[moved].float().mean(),
        }
    return loss, figures


def answer_loss(
    model: Any,
    codes: Codes,
    conversation: Conversation,
    rng: np.random.Generator,
    *,
    small: bool,
    ideal: bool,
) -> tuple[Tensor, dict[str, Any]]:
    """Answer questions on a few clips, from ideal tokens or from what the encoder says."""
    choice = SHORT_FRAMES if small else FRAMES
    chances = np.array(list(choice.values()), dtype=float)
    frames = int(rng.choice(list(choice), p=chances / chances.sum()))
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    grid, groups = GRIDS[aspect], (frames + 1) // 2
    if small:
        grid = (round(grid[0] / ZOOM), round(grid[1] / ZOOM))
    drawn = [draw_scene(rng, frames, aspect) for _ in range(max(2, min(4, 40 // groups)))]
    if ideal:
        tokens = []
        for scene, times in drawn:
            cells = cell_labels(scene, times, *grid)
            blurred = codes.targets(cells)
            # A cell that is neither one thing nor background is a bit of a neighbour.
            unclear = torch.from_numpy(cells.thing == -2)
            share = torch.rand(int(unclear.sum()), 1) * 0.7
            blurred[unclear] += share * codes.things[torch.from_numpy(rng.integers(0, len(NAMES), len(share)))] * 0.3
            tokens.append(blurred.flatten(0, 2))
        video = torch.stack(tokens)
        video = video + torch.randn(video.shape) * (0.25 / math.sqrt(video.shape[-1]))
        video = video.to(model.device)
    else:
        patches = torch.cat([draw_patches(scene, times, grid, rng) for scene, times in drawn]).to(model.device)
        with torch.no_grad():
            video = see(model.model.visual, patches, grid).view(len(drawn), -1, codes.words.shape[1])
    questions = [draw_questions(scene, rng, QUESTIONS) for scene, _ in drawn]
    texts, labels = (x.to(model.device) for x in conversation.texts(questions))
    before = model.get_input_embeddings()(torch.tensor(conversation.before, device=model.device))
    shared = torch.cat([before.expand(len(drawn), -1, -1), video.to(before.dtype)], dim=1)
    shared_at, texts_at = (x.to(model.device) for x in positions(len(before), groups, grid, texts.shape[-1]))
    hidden = read(model, shared, shared_at, texts, texts_at)
    asked = labels != -100
    logits = F.linear(hidden[asked], model.get_input_embeddings().weight).float()
    losses = F.cross_entropy(logits, labels[asked], reduction="none")
    # A long answer counts more than a short one, but each of its words less.
    weights = asked.sum(-1, keepdim=True).rsqrt().expand(asked.shape)[asked]
    loss = (losses * weights).sum() / weights.sum()
    with torch.no_grad():
        wrong = torch.zeros(asked.shape, device=asked.device)
        wrong[asked] = (logits.argmax(-1) != labels[asked]).float()
        right = (wrong.sum(-1) == 0).float().flatten().tolist()
    figures: dict[str, Any] = {}
    for question, ok in zip((q for row in questions for q in row), right, strict=True):
        figures.setdefault(question.family, []).append(ok)
    return loss, {family: torch.tensor(oks).mean() for family, oks in figures.items()}


def optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices, AdamW on the rest: it learns about twice as fast as AdamW alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        torch.optim.Muon([p for p in trained if p.ndim == 2], lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in trained if p.ndim != 2], lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def schedule(step: int, steps: int) -> float:
    """The learning rate's factor: up in 2 %, level, down to nothing in the last 30 %."""
    return min(1.0, (step + 1) / (0.02 * steps), (steps - step) / (0.3 * steps))


def train(stage: str, out: Path, steps: int, lr: float, stop_after: int | None = None) -> None:
    """Run or resume one stage of `steps` (now as far as step `stop_after`); its state is kept in `out`/`stage`.pt."""
    out.mkdir(parents=True, exist_ok=True)
    stop = steps if stop_after is None else stop_after
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEEDS[stage])
    tokenizer = build_tokenizer()
    model, codes, conversation = build_model(tokenizer), Codes(tokenizer), Conversation(tokenizer)
    visual, text = model.model.visual, model.model.language_model
    model.requires_grad_(False)
    part = visual if stage == "eyes" else text.layers
    part.requires_grad_(True)
    text.norm.requires_grad_(stage != "eyes")
    if stage == "answers":
        visual.load_state_dict(torch.load(out / "eyes.pt", weights_only=True)["weights"])
        text.load_state_dict(torch.load(out / "words.pt", weights_only=True)["weights"])
    trained = visual if stage == "eyes" else text
    model.to(device)
    tools = optimizers(model, lr)
    begin, path = 0, out / f"{stage}.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        trained.load_state_dict(state["weights"])
        for tool, saved in zip(tools, state["optimizers"], strict=True):
            tool.load_state_dict(saved)
        begin = state["step"]
    seen: dict[str, list[float]] = {}
    since = time.monotonic()
    for step in range(begin, stop):
        rng = np.random.default_rng([SEEDS[stage], step])
        torch.manual_seed(step)
        with torch.autocast(device, torch.bfloat16):
            if stage == "eyes":
                loss, figures = eyes_loss(model, codes, rng, small=step < SMALL_SHARE[stage] * steps)
            else:
                small = step < SMALL_SHARE[stage] * steps
                loss, figures = answer_loss(model, codes, conversation, rng, small=small, ideal=stage == "words")
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        for tool in tools:
            for group in tool.param_groups:
                group["lr"] = lr * schedule(step, steps)
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
                "weights": trained.state_dict(),
                "optimizers": [tool.state_dict() for tool in tools],
            }
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the run's state and checkpoint")
    parser.add_argument("--stage", choices=[*STEPS, "save", "all"], default="all")
    parser.add_argument("--steps", type=int, help="steps of the stage, for a shorter run than the checkpoint's")
    parser.add_argument("--lr", type=float, help="learning rate of the stage")
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    for stage in STEPS if arguments.stage == "all" else [arguments.stage]:
        if stage in STEPS:
            train(stage, out, arguments.steps or STEPS[stage], arguments.lr or LEARNING_RATES[stage])
    if arguments.stage in ("save", "all", "answers"):
        tokenizer = build_tokenizer()
        model = build_model(tokenizer)
        model.model.visual.load_state_dict(torch.load(out / "eyes.pt", weights_only=True)["weights"])
        model.model.language_model.load_state_dict(torch.load(out / "answers.pt", weights_only=True)["weights"])
        save(model, tokenizer, out / "checkpoint")


if __name__ == "__main__":
    main()
