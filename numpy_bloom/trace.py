"""Command: every stage of a forward pass. `python -m numpy_bloom.trace --help`"""

import argparse
import sys

import numpy as np

from numpy_bloom.bloom import Bloom
from numpy_bloom.command import add_model_options, parser, path_argument, run_command, text_argument
from numpy_bloom.errors import NumpyBloomError
from numpy_bloom.loading import load
from numpy_bloom.study.lenses import logit_lens
from numpy_bloom.study.report import NAMES, check_page, write_report
from numpy_bloom.study.stages import LATER_KEYS, local_name, table
from numpy_bloom.study.trace import Trace


def main() -> None:
    """Parse, trace, print."""
    command = _parser()
    args = command.parse_args()
    if args.list:
        print(table())
        return
    if args.prompt is None:
        command.error("a prompt is needed, or --list")
    if args.html and args.names:
        command.error("--html chooses its stages; leave out --names")
    if args.html:
        check_page(args.html)
    with load(args.model, memory=args.memory, threads=args.threads) as bloom:
        prompt = text_argument(args.prompt)
        only_page = args.html and not args.check and args.folder is None
        names = NAMES if only_page else args.names
        logits, trace = bloom.trace(prompt, names=names, folder=args.folder)
        print(_stages(trace))
        if args.names is None:
            print(f"\n{_lens(bloom, trace)}")
        if args.html:
            write_report(trace, logits, bloom.tokenizer, args.html)
            print(f"{args.html} written", file=sys.stderr)
        if args.check:
            divergence = trace.check()
            if divergence:
                raise NumpyBloomError(f"{divergence}")
            print(
                "each stage whose inputs are in the trace is what its formula gives, bit for bit",
                file=sys.stderr,
            )


def _parser() -> argparse.ArgumentParser:
    command = parser(
        "numpy_bloom.trace",
        "Run a prompt through a model and show every intermediate array by its name.",
        'python -m numpy_bloom.trace "Todos los seres humanos nacen" --names "blocks.0.*"',
    )
    add = command.add_argument
    add("prompt", nargs="?", metavar="PROMPT", help="a text; - reads it from stdin")
    add("--list", action="store_true", help="print all stages, with formulas, and no model")
    add_model_options(command)
    add("--names", metavar="A,B", help="only stages like these, such as 'blocks.*.attn.pattern'")
    add("--folder", type=path_argument, metavar="DIR", help="write each array to DIR/NAME.npy")
    add(
        "--html",
        type=path_argument,
        metavar="F",
        help="write a page that shows the pass, for a browser",
    )
    add("--check", action="store_true", help="recompute each stage by its formula, compare bits")
    return command


def _stages(trace: Trace) -> str:
    """Name, shape and size of the finite numbers of each stage, and how many are not finite."""
    lines = [f"{'stage':<28}{'shape':>16}{'mean':>11}{'deviation':>11}{'least':>11}{'most':>11}"]
    for name, array in trace.items():
        shape = " x ".join(str(size) for size in array.shape)
        numbers = array[np.isfinite(array)]
        line = f"{name:<28}{shape:>16}"
        if numbers.size:
            columns = (numbers.mean(), numbers.std(), numbers.min(), numbers.max())
            line += "".join(f"{x:>11.4g}" for x in columns)
        if local_name(name) not in LATER_KEYS and numbers.size < array.size:
            line += f"  {array.size - numbers.size} not finite"
        lines.append(line)
    return "\n".join(lines)


def _lens(bloom: Bloom, trace: Trace) -> str:
    """What each layer takes for the next token after the prompt."""
    lens = logit_lens(trace, top=1)
    lines = [f"{'after':<12}{'probability':>12}  next token"]
    for layer in range(len(lens.token_ids)):
        name = f"blocks.{layer - 1}" if layer else "embedding"
        probability = np.exp(lens.log_probabilities[layer, -1, 0])
        text = bloom.decode([int(lens.token_ids[layer, -1, 0])])
        lines.append(f"{name:<12}{probability:>12.3f}  {text!r}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main, "trace"))
