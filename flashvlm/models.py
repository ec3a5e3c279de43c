"""Which models there are and where their files are: aliases, Hugging Face ids, folders. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flashvlm.errors import ModelError, UsageError, closest

BUNDLED = Path(__file__).parent / "demo"
DEFAULT_MODEL = "qwen2-vl-2b"
# The files needed to load a checkpoint: weights as safetensors only, and no code.
FILES = ["*.json", "*.jinja", "*.safetensors", "merges.txt"]
# What a tokenizer, and how frames are prepared, can be read from; processor_config.json may say the latter, too.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
PREPARATIONS = ("preprocessor_config.json", "video_preprocessor_config.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Weights are identified by this many samples of this many bytes from each of their files.
SAMPLES, SAMPLE = 64, 2**16
# What writing to a file can fail with, however it is done.
DISK_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}


@dataclass(frozen=True)
class Alias:
    """A short name for a checkpoint: a Hugging Face id, or a folder that comes with the package (`bundled`)."""

    name: str
    source: str
    description: str
    bundled: bool = False


ALIASES = {
    alias.name: alias
    for alias in (
        Alias(
            "demo", "checkpoint", "A small trained Qwen2-VL that comes with flashvlm; knows 26 objects.", bundled=True
        ),
        Alias(
            "demo-natural",
            "checkpoint-natural",
            "demo, trained further in front of natural footage.",
            bundled=True,
        ),
        Alias(
            "demo-unaligned",
            "checkpoint-unaligned",
            "For benches: its visual tokens do not resemble words, so that relevance finds little.",
            bundled=True,
        ),
        Alias(
            "demo-video-llava",
            "checkpoint-video-llava",
            "A small trained Video-LLaVA that comes with flashvlm; knows the same objects.",
            bundled=True,
        ),
        Alias(
            "demo-video-llava-natural",
            "checkpoint-video-llava-natural",
            "demo-video-llava, trained further in front of natural footage.",
            bundled=True,
        ),
        Alias("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", "Qwen2-VL, 2 B parameters. The default."),
        Alias("qwen2-vl-7b", "Qwen/Qwen2-VL-7B-Instruct", "Qwen2-VL, 7 B parameters."),
        Alias("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL, 3 B parameters."),
        Alias("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", "Qwen3-VL, 2 B parameters."),
        Alias("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct", "Qwen3-VL, 4 B parameters."),
        Alias("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct", "Qwen3-VL, 8 B parameters."),
        Alias("video-llava-7b", "LanguageBind/Video-LLaVA-7B-hf", "Video-LLaVA, 7 B parameters; looks at 8 frames."),
        Alias(
            "llava-onevision-0.5b",
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "LLaVA-OneVision, 0.9 B parameters; looks at 32 frames.",
        ),
        Alias(
            "llava-onevision-7b",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            "LLaVA-OneVision, 8 B parameters; looks at 32 frames.",
        ),
        Alias("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "LLaVA-1.5, 7 B parameters; looks at 6 frames, as pictures."),
        Alias("internvl3-1b", "OpenGVLab/InternVL3-1B-hf", "InternVL3, 0.9 B parameters."),
        Alias("internvl3-2b", "OpenGVLab/InternVL3-2B-hf", "InternVL3, 2 B parameters."),
        Alias("smolvlm2-256m", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "SmolVLM2, 0.26 B parameters."),
        Alias("smolvlm2-500m", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "SmolVLM2, 0.5 B parameters."),
        Alias("smolvlm2-2.2b", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "SmolVLM2, 2.2 B parameters."),
    )
}


def _hub_id(model: str) -> str:
    """The Hugging Face id that `model` names; raises ModelError if it cannot be one."""
    source = ALIASES[model].source if model in ALIASES else model
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        return source
    meant, aliases = closest(model, ALIASES), ", ".join(ALIASES)
    suggestion = f" Did you mean {meant}?" if meant else ""
    raise ModelError(
        f"There is no model {model!r}: give an alias ({aliases}), a Hugging Face id or a folder.{suggestion}"
    )


def _folder(model: str) -> Path | None:
    if model in ALIASES:
        return BUNDLED / ALIASES[model].source if ALIASES[model].bundled else None
    path = _expanded(model)
    # These are False also for a name that no file can have.
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise ModelError(f"{model} is a file; a model is a folder with config.json, weights and tokenizer.")
    if path.is_absolute() or model.startswith((".", "~")):
        raise ModelError(f"There is no model folder {model}.")
    return None


def _expanded(model: str) -> Path:
    # As a shell does: `~nobody` stays as it is.
    return Path(os.path.expanduser(model))


def _missing(folder: Path) -> str | None:
    """What a checkpoint folder lacks, in words; None if it is complete. Raises ModelError if it cannot be read."""
    try:
        return _missing_of(folder)
    except OSError as error:
        raise ModelError(f"The model folder {folder} cannot be read: {error.strerror}.") from error


def _missing_of(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return "config.json"
    weights = weight_files(folder)
    if weights is None:
        return f"readable {INDEX}"
    if lacking := [name for name in weights if not (folder / name).is_file()]:
        others = weights == [WEIGHTS] and (any(folder.glob("*.bin")) or any(folder.glob("*.pt*")))
        return f"{lacking[0]} (weights in other formats are not read)" if others else lacking[0]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return "tokenizer.json"
    # Every model on the hub has it, but other programs leave snapshots with only what they use.
    if revision_of(folder) is not None and not (folder / "tokenizer_config.json").is_file():
        return "tokenizer_config.json"
    processor = folder / "processor_config.json"
    said = processor.read_bytes() if processor.is_file() else b""
    nested = b'"video_processor"' in said or b'"image_processor"' in said
    if not nested and not any((folder / name).is_file() for name in PREPARATIONS):
        # Without it, frames would have another size than those that the model has learned from.
        return PREPARATIONS[0]
    return None


def weight_files(folder: Path) -> list[str] | None:
    """The names of the files that hold the weights of the checkpoint in `folder`; None if its index cannot be read."""
    if not (folder / INDEX).is_file():
        return [WEIGHTS]
    try:
        names = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    # All are in the folder itself.
    fit = all(isinstance(name, str) and name and os.path.basename(name) == name for name in names)
    return sorted(names) if names and fit else None


def _cached(hub_id: str, revision: str | None) -> tuple[Path | None, str | None]:
    """The snapshot of this model in the Hugging Face cache, and what it lacks, in words."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if constants.HF_HUB_CACHE.startswith("~"):
        raise ModelError("There is no home folder for the Hugging Face cache: set HOME or HF_HOME.")
    lacking = None
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=FILES, local_files_only=True))
    except LocalEntryNotFoundError as error:
        # Newer clients of the hub keep the list of a model's files.
        begun = getattr(error, "snapshot_path", None)
        if begun is None:
            return None, None
        folder, lacking = Path(begun), "complete set of files"
    except (HfHubHTTPError, ValueError):
        return None, None
    return folder, _missing(folder) or lacking


def state(model: str, revision: str | None = None) -> Literal["here", "incomplete", "away"]:
    """Whether all files of `model` (alias, id or folder) are on this machine, some, or none."""
    try:
        folder = _folder(model)
        folder, lacking = (folder, _missing(folder)) if folder is not None else _cached(_hub_id(model), revision)
    except ModelError:
        return "away"
    return "away" if folder is None else "here" if lacking is None else "incomplete"


def present(model: str, revision: str | None = None) -> bool:
    """Whether all files of `model` (alias, id or folder) are on this machine."""
    return state(model, revision) == "here"


def revision_of(folder: Path) -> str | None:
    """The commit of a snapshot folder in the Hugging Face cache; None for any other folder."""
    commit = re.fullmatch("[0-9a-f]{40}", folder.name)
    return folder.name if commit and folder.parent.name == "snapshots" else None


def fingerprint(folder: Path) -> str:
    """Identifies the checkpoint in `folder`: the commit of a snapshot from the hub, else a digest of its small files
    (settings, tokenizer, templates) and of samples from all over its weights, to avoid reading gigabytes."""
    revision = revision_of(folder)
    if revision is not None:
        return revision
    digest = hashlib.sha256()
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern) if path.is_file()):
        digest.update(path.name.encode())
        if path.suffix != ".safetensors":
            digest.update(path.read_bytes())
            continue
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(str(size).encode())
            for place in range(SAMPLES):
                file.seek(max(0, size - SAMPLE) * place // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def fingerprint_here(model: str) -> str | None:
    """The `fingerprint` of a model that is a folder of the user's; None for an alias or a model on the hub."""
    folder = _expanded(model)
    return fingerprint(folder) if model not in ALIASES and folder.is_dir() else None


def fetch(
    model: str, revision: str | None = None, on_download: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """The folder of `model`, downloaded into the Hugging Face cache if it is not on this machine yet.

    Honours `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN`, as huggingface_hub does.

    Args:
        revision: a branch, tag or commit of a model on the hub; None is the newest.
        on_download: called repeatedly, from several threads, with the bytes downloaded and the bytes wanted. The second
            number grows until every file has begun.

    Raises:
        ModelError: no name, no such model or revision, missing files, a model neither cached nor reachable, or a cache
            that cannot be written to.
        UsageError: a revision of a folder is asked for.
    """
    cached, lacking = _here(model, revision)
    if cached is not None and lacking is None:
        return cached
    from huggingface_hub import constants, snapshot_download

    hub_id = _hub_id(model)
    with _explained(model, revision, lacking):
        meter = _meter(on_download)
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=FILES, tqdm_class=meter))
    if (lacking := _missing(folder)) is not None:
        # Without a hub, the client gives what is in its cache.
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub gave none"
        raise ModelError(f"{hub_id} has no {lacking} on this machine and {why}: {_ways_out(model)}.")
    return folder


@dataclass(frozen=True)
class Download:
    """What `fetch` would download of a model."""

    hub_id: str
    # In bytes, of the files that are not on this machine; None if the hub does not say.
    size: int | None
    # Some files are on this machine.
    begun: bool


def to_download(model: str, revision: str | None = None) -> Download | None:
    """What `fetch` would download, as the hub lists it; None if nothing, which takes no network.

    Raises:
        ModelError, UsageError: as `fetch`.
    """
    cached, lacking = _here(model, revision)
    if cached is not None and lacking is None:
        return None
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects

    hub_id = _hub_id(model)
    with _explained(model, revision, lacking):
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        listed = HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=timeout)
    files = filter_repo_objects(listed.siblings or [], allow_patterns=FILES, key=lambda file: file.rfilename)
    wanted = [
        file.size
        for file in files
        if not isinstance(try_to_load_from_cache(hub_id, file.rfilename, revision=listed.sha), str)
    ]
    sizes = [size for size in wanted if size is not None]
    # A file of unknown size may be the largest.
    return Download(hub_id, sum(sizes) if len(sizes) == len(wanted) else None, cached is not None) if wanted else None


def _here(model: str, revision: str | None) -> tuple[Path | None, str | None]:
    """The folder of `model` on this machine, if there is one, and what it lacks, in words.

    Raises:
        ModelError, UsageError: as `fetch`, for what no network would change.
    """
    if not model.strip():
        raise ModelError("The name of the model is empty; flashvlm models lists some.")
    folder = _folder(model)
    if folder is None:
        return _cached(_hub_id(model), revision)
    if revision is not None:
        where = "comes with flashvlm" if model in ALIASES else "is a folder on this machine"
        raise UsageError(f"{model} {where} and has no revisions: leave out `revision`.")
    if (lacking := _missing(folder)) is not None:
        raise ModelError(f"The model folder {folder} is incomplete: it has no {lacking}.")
    return folder, None


def _ways_out(model: str) -> str:
    """What to do about a model that is not on this machine."""
    return (
        f"fetch it where there is a network (flashvlm fetch {model}), "
        "give a folder (`model` PATH), or try the built-in one (`model` demo)"
    )


@contextlib.contextmanager
def _explained(model: str, revision: str | None, lacking: str | None) -> Iterator[None]:
    """Turn what the hub's client raises for a model, of which `lacking` is missing or all, into a ModelError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub_id, out = _hub_id(model), _ways_out(model)
    not_here = f"{hub_id} has no {lacking} on this machine" if lacking else f"{hub_id} is not on this machine"
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} is gated: accept its terms on the hub and log in with 'hf auth login'.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"There is no model {hub_id} on the hub (or it is private).") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{hub_id} has no revision {revision!r} on the hub.") from error
    except OfflineModeIsEnabled as error:
        raise ModelError(f"{not_here} and HF_HUB_OFFLINE is set: {out}.") from error
    # The hub's client raises whatever its transport does; all of it means that the files are not available.
    except Exception as error:
        if (disk := _of_disk(error)) is not None:
            raise ModelError(f"{hub_id} cannot be stored in {constants.HF_HUB_CACHE}: {disk.strerror}.") from error
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ModelError(f"{not_here} and {why}: {out}.") from error


def _of_disk(error: BaseException | None) -> OSError | None:
    """The error of a file system that led to `error`, if one did."""
    while error is not None:
        # The errors of networks and of certificates have the same numbers, but name no file.
        if isinstance(error, OSError) and error.errno and (error.filename or error.errno in DISK_FULL):
            return error
        error = error.__cause__ or error.__context__
    return None


def _meter(on_download: Callable[[int, int], None]) -> type[Any]:
    """A tqdm class for huggingface_hub that draws nothing and passes on its byte count.

    Where the hub rebuilds files from chunks, it counts bytes in two bars: the one that is ahead is reported.
    """
    import io

    from tqdm.auto import tqdm

    ahead = {"done": 0, "total": 0}

    class Meter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.unit == "B":
                ahead["done"] = max(ahead["done"], int(self.n))
                ahead["total"] = max(ahead["total"], int(self.total or 0), ahead["done"])
                on_download(ahead["done"], ahead["total"])
            return shown

    return Meter
