"""Which worker holds which blocks: pure functions of what the workers have to offer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.sizes import size_text
from numpy_bloom.weights.folder import EMBEDDINGS, block_file, head_files


@dataclass(frozen=True)
class Worker:
    """What a worker has to offer.

    Attributes:
        address: of the worker.
        memory: bytes that weights and runs may take.
        threads: how many compute.
        files: of the model, that are there and as large as they should be.
        rate: bytes of weights per second that a pass of one token goes through, from memory; inf
            where it was not measured.
        disk_rate: bytes per second that it reads from disk.
    """

    address: str
    memory: int
    threads: int
    files: frozenset[str]
    rate: float = math.inf
    disk_rate: float = math.inf


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's files.

    Attributes:
        blocks: of each block.
        head: of the last norm and the matrix that make logits.
        head_names: their names.
    """

    blocks: Sequence[int]
    head: int
    head_names: Sequence[str]

    @classmethod
    def of(cls, manifest: Mapping[str, Any], blocks: int) -> "Sizes":
        """Those of a converted model."""
        files = {name: entry["size"] for name, entry in manifest["files"].items()}
        head = head_files(manifest)
        inside = [files[block_file(i)] for i in range(blocks)]
        return cls(inside, sum(files[name] for name in head), head)


@dataclass(frozen=True)
class Part:
    """A range of blocks, and where it is.

    Attributes:
        worker: that holds it.
        blocks: consecutive.
        embeds, unembeds: whether what lies before the first block, or behind the last one, is with
            it.
        nbytes: of its weights.
        memory: bytes that they and the runs may take.
    """

    worker: Worker
    blocks: range
    embeds: bool
    unembeds: bool
    nbytes: int
    memory: int

    def __str__(self) -> str:
        first, last = self.blocks.start, self.blocks.stop - 1
        # No hyphen: Dask's dashboard would end the name there.
        name = f"blocks {first} to {last}" if last > first else f"block {first}"
        if not self.blocks:
            return "head"
        return f"{name} and head" if self.unembeds else name


def deal(workers: Sequence[Worker], sizes: Sizes, folder: object) -> list[Part]:
    """Deal consecutive ranges, in proportion to the memory that each worker has.

    The head, which is as large as many blocks, goes to the worker with most memory of those that
    have its files. That worker's blocks are the last ones, and fewer. The first range looks tokens
    up in the embeddings on disk.

    Args:
        workers: all there are.
        sizes: of the model's files.
        folder: of the model, for errors.

    Raises:
        NumpyBloomError: what the workers have does not make up the model.
    """
    _check_offers(workers, sizes, folder)
    last = max(_having(workers, sizes.head_names), key=lambda worker: worker.memory)
    count = len(sizes.blocks)
    blocks = [block_file(i) for i in range(count)]
    free = [one for one in workers if one is not last and one.files.intersection(blocks)]
    left = sum(sizes.blocks) + sizes.head  # bytes to be dealt
    parts: list[Part] = []
    begin = 0
    while begin < count:
        wanted = [block_file(begin), *([] if parts else [EMBEDDINGS])]
        # Of those that could go on here, first the one that could not do so much further on.
        able = _having(free, wanted)
        if not able:
            break
        worker = min(able, key=lambda worker: (_reach(worker, begin, count), worker.address))
        quota = left * worker.memory / sum(one.memory for one in [*free, last])
        free.remove(worker)
        end = _end(worker, begin, quota, [*free, last], sizes)
        if end > begin:
            parts.append(_part(worker, range(begin, end), sizes, head=False))
            left -= parts[-1].nbytes
            begin = end
    parts.append(_part(last, range(begin, count), sizes, head=True))
    _check_part(parts[-1], folder, sizes)
    return parts


def _end(worker: Worker, begin: int, quota: float, others: Sequence[Worker], sizes: Sizes) -> int:
    """Where a worker's range ends: by its quota, by what it has, or by what no other has."""
    end, taken = begin, 0.0
    reach = _reach(worker, begin, len(sizes.blocks))
    while end < reach:
        taken += sizes.blocks[end] / 2
        if taken > quota and _having(others, [block_file(end)]):
            break
        taken += sizes.blocks[end] / 2
        end += 1
    return end


def _part(worker: Worker, blocks: range, sizes: Sizes, *, head: bool) -> Part:
    nbytes = sum(sizes.blocks[i] for i in blocks) + head * sizes.head
    return Part(worker, blocks, blocks.start == 0, head, nbytes, worker.memory)


def needed_files(part: Part, sizes: Sizes) -> list[str]:
    """The files that a worker must have for it."""
    return [
        *([EMBEDDINGS] if part.embeds else []),
        *(block_file(i) for i in part.blocks),
        *(sizes.head_names if part.unembeds else []),
    ]


def redeal(
    parts: Sequence[Part], lost: Sequence[int], workers: Sequence[Worker], sizes: Sizes
) -> list[Part]:
    """Give parts whose workers are lost to others; the rest stays where it is.

    A part goes to the worker with most memory beside what it has, if possible to one without any. A
    worker's memory is shared out among its parts in proportion to their bytes.

    Args:
        parts: as they were.
        lost: places of those that are lost.
        workers: those that are left.
        sizes: of the model's files.

    Raises:
        NumpyBloomError: nobody who is left has the files of a part.
    """
    result = list(parts)
    for place in lost:
        held = dict.fromkeys((worker.address for worker in workers), 0)
        for number, part in enumerate(result):
            if number not in lost or number < place:
                held[part.worker.address] += part.nbytes
        able = _having(workers, needed_files(result[place], sizes))
        if not able:
            raise NumpyBloomError(
                f"a worker was lost, and no other one has the files of {result[place]}; give them "
                "to another worker, or start that one again"
            )
        free = {one.address: one.memory - held[one.address] for one in able}
        fits = {name for name, memory in free.items() if memory >= result[place].nbytes}
        worker = max(
            able,
            key=lambda one: (one.address in fits and not held[one.address], free[one.address]),
        )
        result[place] = replace(result[place], worker=worker)
    return [
        replace(
            part,
            memory=part.worker.memory
            * part.nbytes
            // sum(one.nbytes for one in result if one.worker.address == part.worker.address),
        )
        for part in result
    ]


def expected_seconds(parts: Sequence[Part], empty: float) -> float:
    """Seconds of a pass of one token: reading weights, and what a pass without any takes."""
    return empty + sum(part_seconds(part) for part in parts)


def part_seconds(part: Part) -> float:
    """Seconds that a token spends in a part, if all memory holds weights."""
    pinned = min(part.nbytes, part.memory)
    streamed = part.nbytes - pinned
    return pinned / part.worker.rate + streamed / min(part.worker.rate, part.worker.disk_rate)


def plan_text(parts: Sequence[Part], empty: float) -> str:
    """The plan for people: who holds what, bytes, expected seconds per token."""
    total = sum(part.nbytes for part in parts)
    lines = [
        f"{size_text(total)} of weights on {len(parts)} worker{'s' if len(parts) > 1 else ''}, "
        f"about {expected_seconds(parts, empty):.2g} s a token, of which {empty:.2g} s on the way:"
    ]
    for part in parts:
        streamed = max(0, part.nbytes - part.memory)
        disk = f", {size_text(streamed)} read from disk in each pass" if streamed else ""
        lines.append(
            f"  {part} on {part.worker.address}: {size_text(part.nbytes)}, memory "
            f"{size_text(part.memory)}, {part_seconds(part):.2g} s{disk}"
        )
    return "\n".join(lines)


def _having(workers: Sequence[Worker], names: Sequence[str]) -> list[Worker]:
    return [worker for worker in workers if worker.files.issuperset(names)]


def _reach(worker: Worker, begin: int, count: int) -> int:
    """The first block from `begin` on that a worker lacks."""
    lacking = (i for i in range(begin, count) if block_file(i) not in worker.files)
    return next(lacking, count)


def _check_offers(workers: Sequence[Worker], sizes: Sizes, folder: object) -> None:
    """Each file is on some worker."""
    if not any(worker.files for worker in workers):
        raise NumpyBloomError(
            f"no worker of the cluster finds {folder}; it must have the model, or its blocks of "
            "it, under the same path"
        )
    for name in [EMBEDDINGS, *map(block_file, range(len(sizes.blocks))), *sizes.head_names]:
        if not _having(workers, [name]):
            raise NumpyBloomError(
                f"no worker of the cluster has {name} of {folder}, complete; copy it to one"
            )


def _check_part(part: Part, folder: object, sizes: Sizes) -> None:
    lacking = [name for name in needed_files(part, sizes) if name not in part.worker.files]
    if lacking:
        raise NumpyBloomError(
            f"the workers' copies of {folder} make up no chain of ranges, one for each worker: "
            f"{lacking[0]} would have to be on {part.worker.address}"
        )
