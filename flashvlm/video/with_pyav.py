"""Videos read with PyAV.

PyAV reports damaged frames (`is_corrupt`) as FFmpeg marks them: most in H.264 and MPEG-4, few in other codecs. Frames
that depend on a damaged one are not marked.
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from flashvlm.errors import VideoError
from flashvlm.video.containers import Orientation, orientation, upright
from flashvlm.video.reader import InexactError, Reader, Source, duration_of

if TYPE_CHECKING:
    import torch

# No codec here shows as many frames as this before one that they refer to.
MOST_REORDERED = 16
# FFmpeg's readers of files that hold pictures or sound themselves. Others open further files (playlists, scripts of
# `concat`), devices or addresses. `image2` does so too, unless told that a name has no pattern in it.
FORMATS = (
    "3gp,aac,aiff,asf,av1,avi,bmp_pipe,cavsvideo,dds_pipe,dhav,dirac,dnxhd,dpx_pipe,dv,evc,"
    "exr_pipe,flac,flv,gif,gif_pipe,gxf,h261,h263,h264,hdr_pipe,hevc,image2,ivf,j2k_pipe,jpeg_pipe,"
    "jpegls_pipe,jpegxl_anim,jpegxl_pipe,kux,live_flv,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nsv,nut,nuv,obu,ogg,pam_pipe,pbm_pipe,pcx_pipe,pfm_pipe,pgm_pipe,pgmyuv_pipe,"
    "png_pipe,ppm_pipe,psd_pipe,qoi_pipe,rm,sgi_pipe,smk,sunrast_pipe,swf,tiff_pipe,vc1,vc1test,vvc,"
    "wav,webp_pipe,wtv,xbm_pipe,xpm_pipe,xwd_pipe,yuv4mpegpipe"
)
UNREADABLE = "this is not a video or a picture that can be read"
UNKNOWN_CODEC = "it is in a format of video that cannot be decoded here"
NO_VIDEO = "there is no video in this file"
DAMAGED = "the video is damaged and cannot be decoded"
HIDDEN = "it has no frame to show, and may be damaged"
NO_TIMES = "this file has no timestamps; ffmpeg -i FILE out.mp4 makes one that has"


class _Held:
    """Pictures of frames that may depend on a frame shown later, and share its damage: held until that one is out.

    `pictures` has them by the key of their frame, each with how many frames had come out before.
    """

    def __init__(self) -> None:
        self.pictures: dict[int, tuple[int, torch.Tensor]] = {}
        self._shown = 0

    def take(self, key: int, picture: torch.Tensor) -> None:
        """Hold the picture of the frame that has just come out."""
        self.pictures[key] = (self._shown, picture)

    def let_go(self, frame: Any) -> list[tuple[int, torch.Tensor]]:
        """Release what depends on no frame after `frame`, which has just come out whole; all at the end (None)."""
        from av.video.frame import PictureType

        self._shown += 1
        oldest = self._shown - MOST_REORDERED if frame is not None and frame.pict_type == PictureType.B else self._shown
        sure = [(key, picture) for key, (shown, picture) in self.pictures.items() if shown < oldest]
        for key, _ in sure:
            del self.pictures[key]
        return sure


class PyAVReader(Reader):
    """A video read with PyAV from its first frame on: slower than decord, but right where decord is not.

    If `strict`, damaged frames are refused like missing ones.
    """

    def __init__(self, source: Source, strict: bool = True):
        self._source, self._strict = source, strict
        self._size: tuple[int, int] | None = None
        self._turned: dict[int, Orientation] = {}
        with opened(source) as (container, stream):
            # AVI says when a frame is decoded, not when it is shown. If the two orders may differ, frames are
            # identified by their number alone.
            self._in_turn = container.format.name == "avi" and stream.codec_context.has_b_frames
            # In decoding order.
            packets, timeless = [], False
            for packet in container.demux(stream):
                source.seconds_left()
                moment = packet.dts if self._in_turn else packet.pts
                if moment is not None:
                    packets.append((moment, packet.duration or 0, packet.is_keyframe, packet.is_discard))
                elif packet.size:
                    timeless = True
            unit = float(stream.time_base)
        self._packets = [(moment, is_key) for moment, _, is_key, _ in packets]
        # Nothing can be decoded before the first key frame, and an edit list may hide what can.
        first = next((moment for moment, _, is_key, _ in packets if is_key), math.inf)
        shown = sorted((moment, length) for moment, length, _, hidden in packets if moment >= first and not hidden)
        if not shown:
            raise VideoError(f"{source.path}: {NO_TIMES if timeless else HIDDEN if packets else NO_VIDEO}.")
        self._times = [moment for moment, _ in shown]
        self.starts = [round((moment - self._times[0]) * unit, 6) for moment in self._times]
        self.duration = round(duration_of(self.starts, self.starts[-1] + shown[-1][1] * unit), 6)

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        wanted, held, damaged = set(chosen), _Held(), False
        with opened(self._source) as (container, stream):
            for number, frame in enumerate(self._decoded(container.demux(stream))):
                if number >= len(self._times) or not (self._in_turn or frame.pts == self._times[number]):
                    break
                # What is shown after a damaged frame, up to the next key frame, may depend on it.
                damaged = bool(frame.is_corrupt) or (damaged and not frame.key_frame)
                if damaged and self._strict and (held.pictures or number in wanted):
                    held = _Held()
                    break
                if number in wanted:
                    held.take(number, self._upright(frame))
                for sure, picture in held.let_go(frame):
                    wanted.remove(sure)
                    yield picture
                if not wanted:
                    return
            for sure, picture in held.let_go(None):
                wanted.remove(sure)
                yield picture
            if not wanted:
                return
        raise VideoError(
            f"{self._source.path}: the video is damaged; its frame at {self.starts[min(wanted)]:.2f} s cannot be read."
        )

    def _decoded(self, packets: Iterator[Any]) -> Iterator[Any]:
        for packet in packets:
            self._source.seconds_left()
            yield from packet.decode()

    def _upright(self, frame: Any) -> torch.Tensor:
        """A PyAV frame as (H, W, 3) uint8, turned as it says."""
        import torch

        if frame.rotation not in self._turned:
            self._turned[frame.rotation] = orientation_of(frame)
        turned = self._turned[frame.rotation]
        self.rotation = turned.rotation
        self._size = self._size or (frame.width, frame.height)
        if (frame.width, frame.height) != self._size:
            # All are shown in the size of the first, as players do.
            frame = frame.reformat(*self._size)
        if max(part.bits for part in frame.format.components) > 8:
            return torch.from_numpy(_filtered(frame, turned).to_ndarray())
        return torch.from_numpy(upright(frame.to_ndarray(format="rgb24"), turned))


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """A file as PyAV's container, and its first video stream; what goes wrong while it is used is a `VideoError`."""
    import av

    path, limit = source.path, source.limits.max_source_pixels
    # FFmpeg counts lines as long as they are in memory.
    most = {"max_pixels": str(limit + 2**22)}
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "pattern_type": "none", **most}
    problem = UNREADABLE
    try:
        # The prefix keeps FFmpeg from taking a colon in the name for a protocol.
        with av.open(
            f"file:{path}", options=options, metadata_errors="replace", timeout=source.seconds_left()
        ) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: {NO_VIDEO}.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError(f"{path}: {UNKNOWN_CODEC}.")
            source.check_size(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.options = most
            stream.thread_type = "AUTO"
            problem = DAMAGED
            if not stream.codec_context.width:
                problem += f", or has frames of more than {limit} pixels (`max_source_pixels` allows more)"
            yield container, stream
    except (av.FFmpegError, UnicodeError) as error:
        source.seconds_left()
        raise VideoError(f"{path}: {problem}.") from error


def orientation_of(frame: Any) -> Orientation:
    """How a PyAV frame becomes upright."""
    import numpy as np

    try:
        # A frame that has been asked for this is kept until garbage is collected; so it had better be small.
        matrix = frame.reformat(16, 16).side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV does not know all that may come with a frame. This much it says of any.
        return Orientation(-frame.rotation % 360 // 90 * 90)
    return Orientation() if matrix is None else orientation(np.frombuffer(matrix, np.int32).tolist())


def _filtered(frame: Any, turned: Orientation) -> Any:
    """A PyAV frame, upright and in RGB by FFmpeg's filters, as decord has them: with more than 8 bits, PyAV's own
    conversion places colours differently."""
    from av.filter import Graph

    graph = Graph()
    unit = frame.time_base or Fraction(1)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=unit)
    turns = [graph.add("hflip")] if turned.mirrored else []
    turns += [graph.add("transpose", "clock") for _ in range(turned.rotation // 90)]
    chain = [source, *turns, graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")]
    for one, following in pairwise(chain):
        one.link_to(following)
    graph.configure()
    graph.push(frame)
    return graph.pull()


class ForwardReader(PyAVReader):
    """A video read with PyAV in one pass that leaves out what no chosen frame depends on.

    That is: whole groups of pictures without a chosen frame, what follows the last chosen one of a group, and pictures
    that no other one refers to. `keys` are the indices of the key frames.
    """

    def __init__(self, source: Source):
        super().__init__(source)
        if self._in_turn:
            # AVI does not say which packet holds which frame.
            raise InexactError
        shown, keys = set(self._times), sorted(moment for moment, is_key in self._packets if is_key)
        self.keys = [bisect_left(self._times, moment) for moment in keys if moment in shown]

    def read(self, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
        wanted = {self._times[index] for index in chosen}
        ahead = self._ahead_of_their_keys()
        last = self._last_needed(wanted, ahead)
        found: dict[int, torch.Tensor] = {}
        held = _Held()
        with opened(self._source) as (container, stream):
            number = group = -1
            latest = -math.inf
            for packet in container.demux(stream):
                self._source.seconds_left()
                if packet.pts is not None:
                    number += 1
                    group += packet.is_keyframe
                    if number > last.get(group, -1):
                        continue
                    # Of the frames that are not wanted, only those that others refer to are decoded.
                    stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in packet.decode():
                    if frame.pts is not None:
                        if frame.pts < latest:
                            # One that others refer to is missing, and they have been mixed up.
                            raise InexactError
                        latest = frame.pts
                    if frame.is_corrupt and (frame.pts in wanted or frame.pts not in ahead):
                        raise InexactError
                    if frame.pts in wanted:
                        held.take(frame.pts, self._upright(frame))
                    found.update(held.let_go(frame))
                if not packet.size:
                    # Nothing follows it.
                    found.update(held.let_go(None))
                while chosen and (moment := self._times[chosen[0]]) in found:
                    yield found.pop(moment)
                    chosen = chosen[1:]
                if not chosen:
                    return
        raise InexactError

    def _ahead_of_their_keys(self) -> set[int]:
        """The times of frames that follow a key frame in the file but are shown before it: they may depend on the group
        of pictures before, and do not count as damaged if that is left out."""
        ahead, key = set(), 0
        for moment, is_key in self._packets:
            key = moment if is_key else key
            if moment < key:
                ahead.add(moment)
        return ahead

    def _last_needed(self, wanted: set[int], ahead: set[int]) -> dict[int, int]:
        """For each group of pictures that has any packet to decode, the number of the last one."""
        last: dict[int, int] = {}
        group, end_before = -1, -1
        for number, (moment, is_key) in enumerate(self._packets):
            if is_key:
                group, end_before = group + 1, number - 1
            if moment in wanted:
                last[group] = number
                if moment in ahead:
                    # It may refer to the whole group before.
                    last[group - 1] = end_before
        return last
