"""Store and forward for telemetry: samples wait on the disk, in order, within a bound; the oldest go first.

Segments of JSON lines, `<number>.jsonl`, below one directory. What a device *is* is never kept here: that is in its
journals, and the newest is told first of all on every connection. Samples are not fsynced: a power cut may cost the
last of them, and flash that lasts is worth more. Delivery is at least once: what was read of a segment but not all of
it is read again after a restart. A full or broken disk costs samples and nothing else: no method raises for it.

Lives here: files, order, the bound. Must not live here: what a sample says (`usage`), sending (`telemetry`).
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from skerry.core.messages import Sample

log = logging.getLogger(__name__)

SEGMENTS = 16
"""The bound is kept by dropping whole segments, so one of them is the precision."""
MAX_LINE_BYTES = 64 * 1024
_SUFFIX = ".jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples from the old end, and where they end: in which segment, after how many bytes."""

    samples: Sequence[Sample]
    segment: int = 0
    end: int = 0


class Spool:
    """The samples that nobody has taken yet. Used by one task at a time; its methods block for a moment."""

    def __init__(self, directory: Path, *, limit_bytes: int) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._segment_bytes = max(limit_bytes // SEGMENTS, 1)
        self._taken = (0, 0)
        """Segment, and bytes of it that were delivered."""
        self.dropped = 0
        """Samples lost to the bound, the disk or damage, as far as they can be counted; whoever tells sets it back."""

    def append(self, samples: Sequence[Sample]) -> None:
        """Keep samples behind all others, dropping the oldest where there is no room."""
        if not samples:
            return
        lines = [msgspec.json.encode(sample) + b"\n" for sample in samples]
        kept = deque(line for line in lines if len(line) <= min(MAX_LINE_BYTES, self._segment_bytes))
        self.dropped += len(lines) - len(kept)
        for attempt in (1, 2):
            try:
                self._write(kept)
                return
            except OSError as error:
                if attempt == 2 or not self._drop_oldest():
                    self.dropped += len(kept)
                    log.warning("spool.not_written samples=%d error=%s", len(kept), error)
                    return

    def read(self, *, max_bytes: int, max_samples: int) -> Batch | None:
        """Return the oldest samples, at least one; None when there are none."""
        for number in self._numbers():
            taken = self._taken[1] if self._taken[0] == number else 0
            found = self._read_segment(number, taken, max_bytes, max_samples)
            if found.samples:
                return found
            self._remove(number)  # delivered, or damaged from there to its end
        return None

    def forget(self, batch: Batch) -> None:
        """Forget samples that were delivered."""
        self._taken = (batch.segment, batch.end)
        for number in self._numbers():
            if number < batch.segment or (number == batch.segment and self._size(number) <= batch.end):
                self._remove(number)

    def _write(self, lines: deque[bytes]) -> None:
        """Take each line off when it is on the disk."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        numbers = self._numbers()
        newest = numbers[-1] if numbers else 1
        while lines:
            line = lines[0]
            if self._size(newest) + len(line) > self._segment_bytes:
                newest += 1
            while self._numbers() and sum(map(self._size, self._numbers())) + len(line) > self._limit:
                self._drop_oldest()
            self._append_line(self._path(newest), line)
            lines.popleft()

    def _append_line(self, path: Path, line: bytes) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # the last one was cut off: it must not spoil this one
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError("the disk took only a part")
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _read_segment(self, number: int, start: int, max_bytes: int, max_samples: int) -> Batch:
        samples: list[Sample] = []
        end = start
        try:
            with self._path(number).open("rb") as file:
                file.seek(start)
                while len(samples) < max_samples and (line := file.readline(MAX_LINE_BYTES + 1)):
                    if samples and end + len(line) - start > max_bytes:
                        break
                    end += len(line)
                    try:
                        samples += [msgspec.json.decode(line, type=Sample)] if line.strip() else []
                    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
                        self.dropped += 1
        except OSError as error:
            log.warning("spool.not_read segment=%d error=%s", number, error)
        return Batch(samples=samples, segment=number, end=end)

    def _drop_oldest(self) -> bool:
        numbers = self._numbers()
        if not numbers:
            return False
        taken = self._taken[1] if self._taken[0] == numbers[0] else 0
        try:
            self.dropped += self._path(numbers[0]).read_bytes()[taken:].count(b"\n")
        except OSError:
            self.dropped += 1
        self._remove(numbers[0])
        return numbers[0] not in self._numbers()

    def _numbers(self) -> list[int]:
        try:
            names = [path.name.removesuffix(_SUFFIX) for path in self._directory.glob(f"*{_SUFFIX}")]
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 16)

    def _path(self, number: int) -> Path:
        return self._directory / f"{number}{_SUFFIX}"

    def _size(self, number: int) -> int:
        try:
            return self._path(number).stat().st_size
        except OSError:
            return 0

    def _remove(self, number: int) -> None:
        try:
            self._path(number).unlink(missing_ok=True)
            if self._taken[0] == number:
                self._taken = (0, 0)  # the number may be used again
        except OSError as error:  # a disk that became read-only; what is read twice is told twice
            log.warning("spool.not_removed segment=%d error=%s", number, error)
