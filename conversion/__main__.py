"""Command: convert a checkpoint. `python -m conversion --help`"""

import sys

from conversion.convert import DTYPES, convert
from numpy_bloom.command import parser, path_argument, run_command


def main() -> None:
    """Parse and convert."""
    command = parser(
        "conversion",
        "Convert a Hugging Face checkpoint of a BLOOM for numpy_bloom.",
        "python -m conversion bigscience/bloom-560m bloom-560m",
    )
    add = command.add_argument
    add(
        "source",
        type=path_argument,
        metavar="SOURCE",
        help="a local folder, or a name on the Hugging Face hub",
    )
    add(
        "target",
        type=path_argument,
        metavar="TARGET",
        help="the folder to write; of a model there that lost files, just these",
    )
    add(
        "--dtype",
        choices=DTYPES,
        default="keep",
        help="of the blocks' matrices (default: %(default)s)",
    )
    add(
        "--head-dtype",
        choices=DTYPES,
        help="of the embeddings, which are the head too (default: as --dtype, but keep for int8 "
        "and int8 for int4)",
    )
    add("--overwrite", action="store_true", help="replace a converted model at TARGET")
    shards = command.add_mutually_exclusive_group()
    shards.add_argument(
        "--keep-source",
        action="store_const",
        const=True,
        help="keep what is downloaded, in TARGET.source (default: each shard is dropped when it is "
        "converted)",
    )
    shards.add_argument(
        "--delete-source",
        action="store_const",
        const=False,
        dest="keep_source",
        help="delete each shard of a local folder when it is converted and read back",
    )
    args = command.parse_args()
    convert(
        args.source,
        args.target,
        args.dtype,
        head_dtype=args.head_dtype,
        overwrite=args.overwrite,
        keep_source=args.keep_source,
        tell=lambda line: print(f"conversion: {line}", file=sys.stderr, flush=True),
    )


if __name__ == "__main__":
    sys.exit(run_command(main, "conversion"))
