"""A checkpoint that is there one shard at a time: what lies where, and what is needed."""

from collections.abc import Iterable

from conversion.shards import find_shards, open_shards, strip_prefix
from conversion.source import COPIED, Source
from conversion.source_tensor import SourceTensor
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.model.config import read_config
from numpy_bloom.tokenizer import TOKENIZER, read_tokenizer
from numpy_bloom.weights.bounded import read_json
from numpy_bloom.weights.folder import (
    ArrayFile,
    check_shapes,
    head_file,
    model_files,
)

EMBEDDINGS_WEIGHT = "word_embeddings.weight"
HEAD_WEIGHT = "lm_head.weight"


class Checkpoint:
    """A source's tensors, of which those of opened shards are known.

    Attributes:
        config: its config.json.
        shards: its weight files, as `find_shards` has them.
        tensors: those of opened shards, by names without prefix.

    Raises:
        NumpyBloomError: a file that is to be copied or the index is malformed, or the index names
            other tensors than a BLOOM has.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.config = read_config(source.folder)
        for name in COPIED:
            if name in source.sizes and name != TOKENIZER:
                read_json(source.folder / name)
        read_tokenizer(source.folder, self.config.vocab_size)
        self.shards = find_shards(source.folder, source.sizes)
        listed = {name: file for file, names in self.shards.items() for name in names}
        self._places = strip_prefix(listed)  # nothing, of a single file that is not opened
        self.tensors: dict[str, SourceTensor] = {}
        self._opened: set[str] = set()
        if self._places:
            self._check()

    @property
    def files(self) -> list[ArrayFile]:
        """The files to write; that of the head among them only if the checkpoint may have one."""
        sizes = self.config.hidden_size, self.config.vocab_size
        files = model_files(self.config.num_hidden_layers, *sizes)
        if HEAD_WEIGHT in self._places or not self._places:
            files.append(head_file(*sizes))
        return files

    def has(self, name: str) -> bool:
        """Whether there is such a tensor; of a single file that is not open, all but a head."""
        return name in self._places if self._places else name != HEAD_WEIGHT

    def needs(self, files: Iterable[ArrayFile]) -> set[str]:
        """The shards that some files are made of."""
        if not self._places:
            return set(self.shards) if list(files) else set()
        names = {file.prefix + name for file in files for name in file.shapes}
        if HEAD_WEIGHT in names:
            names.add(EMBEDDINGS_WEIGHT)  # with which it is compared
        return {self._places[name] for name in names if name in self._places}

    def open(self, shards: Iterable[str]) -> None:
        """Fetch shards and open them; those that are open already stay so.

        Raises:
            NumpyBloomError: a shard cannot be had, is malformed, or is none of a BLOOM's.
        """
        new = sorted(set(shards) - self._opened)
        for shard in new:
            self._source.fetch(shard)
        if new:
            wanted = {shard: self.shards[shard] for shard in new}
            self.tensors |= strip_prefix(open_shards(self._source.folder, wanted))
            self._opened |= set(new)
            if len(self.shards) == 1:
                self._places = dict.fromkeys(self.tensors, new[0])
            self._check()

    def _check(self) -> None:
        """Compare names, and shapes as far as they are known, with the config's."""
        expected = {
            file.prefix + name: shape for file in self.files for name, shape in file.shapes.items()
        }
        known = {name: tensor.shape for name, tensor in self.tensors.items()}
        found = {name: known.get(name, expected.get(name, ())) for name in self._places}
        check_shapes(found, expected, self._source.folder)
        if not self.config.tie_word_embeddings and HEAD_WEIGHT not in self._places:
            raise NumpyBloomError(
                f"{self._source.folder}: config.json says that the head is not the word embeddings "
                "(tie_word_embeddings is false), but 'lm_head.weight' is missing"
            )
