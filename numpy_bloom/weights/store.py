"""An opened model folder as the model sees it: vectors at once, matrices when their turn comes."""

import sys
from collections import Counter
from dataclasses import replace

from numpy_bloom.weights.budget import keep_freed_memory
from numpy_bloom.weights.dtypes import Floats, widen
from numpy_bloom.weights.files import DirectFiles
from numpy_bloom.weights.folder import EMBEDDINGS, LM_HEAD, Folder
from numpy_bloom.weights.formats import Format
from numpy_bloom.weights.matrix import ChunksInUse, Matrix, MatrixPart, bytes_of
from numpy_bloom.weights.processes import PROCESS_BYTES, Processes, exchange_bytes
from numpy_bloom.weights.safetensors_file import StoredArray
from numpy_bloom.weights.stored_matrix import StoredMatrix, read_small
from numpy_bloom.weights.stream import Chunk, Stream
from numpy_bloom.weights.team import Team

CHUNK_BYTES = (16 << 20) + (1 << 18)
"""Most that is read at once (or one tile, if that is larger). Disks want large reads: matrices that
are smaller share one, with the biases between them, for which there is a little room."""

WORTH_PROCESSES = 200 << 20
"""Bytes of weights from which on processes help: they start in the time of some such passes."""


class WeightStore:
    """The arrays of a converted folder, and the threads and buffers to work with them.

    Args:
        folder: an opened folder.
        threads: how many compute.

    Attributes:
        stream: the chunks of all matrices that a pass multiplies by.
        in_use: those that are being worked on.
        team: the threads.
        vector_bytes: of small arrays that were read.
    """

    def __init__(self, folder: Folder, threads: int) -> None:
        keep_freed_memory()
        self.folder = folder
        self.team = Team(threads)
        self.vector_bytes = 0
        self._files = DirectFiles()
        self._processes: Processes | None = None
        chunks: list[Chunk] = []  # the parts lie in them
        opened = []
        for stored in _pass_order(folder):
            format = self._format(stored)
            opened.append((stored.array, format, _parts(stored.array, format, chunks)))
        nbytes = sum(chunk.nbytes for chunk in chunks)
        program = sys.executable and not getattr(sys, "frozen", False)
        may_help = threads > 1 and nbytes >= WORTH_PROCESSES and bool(program)
        self.stream = Stream(chunks, self._files, shared=may_help)
        tiles: Counter[int] = Counter()
        for _, format, parts in opened:
            for part in parts:
                tiles[part.chunk] += len(part.rows[:: format.tile_rows])
        self.in_use = ChunksInUse(self.stream, tiles)
        self._may_help = self.stream.pages is not None
        self._matrices = {
            array: Matrix(array, format, self, parts, number)
            for number, (array, format, parts) in enumerate(opened)
        }

    def _format(self, stored: StoredMatrix) -> Format:
        self.vector_bytes += sum(array.nbytes for array in stored.beside.values())
        return stored.opened()

    def vector(self, file: str, name: str) -> Floats:
        """Read a small array as float32.

        Raises:
            NumpyBloomError: it cannot be read, or holds NaN or inf.
        """
        array = self.folder.files[file].vectors[name]
        values = widen(read_small(array), array.dtype)
        self.vector_bytes += values.nbytes
        return values

    def matrix(self, file: str, name: str) -> Matrix:
        """A handle on a big array."""
        stored = self.folder.files[file].matrices[name]
        if stored.array not in self._matrices:  # an embedding that is no head
            return Matrix(stored.array, self._format(stored), self)
        return self._matrices[stored.array]

    def scratch_bytes(self, tokens: int) -> int:
        """Memory that one thread needs to multiply so many tokens by any of the matrices."""
        return max(matrix.format.scratch_bytes(tokens) for matrix in self._matrices.values())

    @property
    def process_bytes(self) -> int:
        """What processes that help take beside the weights; 0 if there are none to be."""
        if not self._may_help:
            return 0
        for_x, for_y = exchange_bytes([matrix.shape for matrix in self._matrices.values()])
        each = PROCESS_BYTES + self.vector_bytes + for_y  # some have arrays beside matrices
        return for_x + (self.team.threads - 1) * each

    @property
    def processes(self) -> Processes | None:
        """Those that are ready to help, if all weights are in memory."""
        processes = self._processes
        if processes is None or self.stream.bytes_pinned < self.stream.nbytes:
            return None
        return processes if processes.ready else None

    def wait_for_processes(self) -> None:
        """Wait until those that have been started can help."""
        if self._processes is not None:
            self._processes.wait()

    def pin(self, nbytes: int) -> None:
        """Hold as many weights in memory as fit into `nbytes`, see `Stream.pin`.

        Processes help to compute while all of them fit, and the processes beside them.
        """
        self.stream.pin(nbytes)
        pages, room = self.stream.pages, nbytes - self.stream.nbytes
        if pages is None or not 0 < self.process_bytes <= room:
            self._end_processes()
        elif self._processes is None:
            tiling = [(matrix.format, matrix.cuts(pages)) for matrix in self._matrices.values()]
            try:
                self._processes = Processes(self.team.threads - 1, pages.memory, tiling)
            except OSError:  # threads do without, and it would fail again
                self._may_help = False

    def _end_processes(self) -> None:
        if self._processes is not None:
            self._processes.close()
        self._processes = None

    def close(self) -> None:
        """End all threads and processes, close all files, give back all memory."""
        self._end_processes()
        self.stream.close()
        self.team.close()
        self._files.close()


def _pass_order(folder: Folder) -> list[StoredMatrix]:
    """The matrices that a pass multiplies by, in order: the blocks', then the head."""
    files = [file for file in folder.files if file not in (EMBEDDINGS, LM_HEAD)]
    heads = [] if folder.head is None else [folder.head]
    return [matrix for file in files + heads for matrix in folder.files[file].matrices.values()]


def _parts(array: StoredArray, format: Format, chunks: list[Chunk]) -> list[MatrixPart]:
    """A matrix's rows in parts of whole tiles that can be read at once; the chunks grow by them."""
    rows, columns = format.shape
    step = max(1, CHUNK_BYTES // format.nbytes(format.tile_rows, columns)) * format.tile_rows
    parts = []
    for start in range(0, rows, step):
        part, before = range(start, min(start + step, rows)), len(chunks)
        _extend(chunks, bytes_of(array, format, part))
        parts.append(MatrixPart(len(chunks) - 1, part, len(chunks) > before))
    return parts


def _extend(chunks: list[Chunk], part: Chunk) -> None:
    """Read a part together with the last chunk, if that is not too much, or apart."""
    if chunks and chunks[-1].path == part.path:
        last = chunks[-1]
        together = part.offset + part.nbytes - last.offset
        if last.nbytes < together <= CHUNK_BYTES:
            chunks[-1] = replace(last, nbytes=together)
            return
    chunks.append(part)
