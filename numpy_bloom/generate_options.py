"""What the command `generate` can be asked for, and what does not go together."""

import argparse
from dataclasses import fields

from numpy_bloom.command import add_model_options, parser, path_argument
from numpy_bloom.errors import OptionError
from numpy_bloom.generation.options import GenerationOptions

OPTIONS = tuple(field.name for field in fields(GenerationOptions))
"""Those that `Bloom.generate_batch` has under the same names."""

BEAM_OPTIONS = ("length_penalty", "early_stopping")
"""Those that only `Bloom.beam_search` has."""

NOT_WITH_BEAMS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "num_samples",
    "draft_model",
    "draft_tokens",
    "prompt_cache",
)
"""Those that a beam search does not have."""


def arguments() -> argparse.Namespace:
    """Those of the command line. If they are wrong, the command ends.

    Raises:
        OptionError: one does not go with another one.
    """
    command = _parser()
    args = command.parse_args()
    _check_prompts(args, command)
    _check_beams(args, command)
    _check_ignored(args)
    return args


def _check_prompts(args: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    if args.prompt_cache is None and (args.resume or args.ignore_damaged_cache):
        command.error("--resume and --ignore-damaged-cache need --prompt-cache")
    if args.prompt_cache is not None and (args.prompts_file is not None or args.num_samples != 1):
        command.error("--prompt-cache is for one text; it does not go with --prompts-file or -n")
    given = [text for text in (args.prompt, args.prompts_file) if text is not None]
    if len(given) != 1 and not (args.resume and not given):
        command.error("give either PROMPT or --prompts-file")


def _check_ignored(args: argparse.Namespace) -> None:
    """Refuse what would change nothing.

    Raises:
        OptionError: there is such an option.
    """
    if args.show_tokens and args.prompts_file is not None:
        raise OptionError("--show-tokens does not go with --prompts-file, which prints JSON Lines")
    # A text that is resumed knows what guessed for it.
    if args.draft_tokens is not None and args.draft_model is None and not args.resume:
        raise OptionError("--draft-tokens needs --draft-model")


def _check_beams(args: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    """Keep the options of a beam search and of other texts apart.

    Raises:
        OptionError: an option goes with a beam search only, or does not go with one.
    """
    searching = args.num_beams != 1
    for name in NOT_WITH_BEAMS if searching else BEAM_OPTIONS:
        if getattr(args, name) != command.get_default(name):
            flag = f"--{name.replace('_', '-')}"
            if searching:
                raise OptionError(f"{flag} does not go with --num-beams; give one of the two")
            raise OptionError(f"{flag} is for a beam search; give --num-beams too, above 1")


def _parser() -> argparse.ArgumentParser:
    command = parser(
        "numpy_bloom.generate",
        "Continue a prompt with a BLOOM. The new text goes to stdout, statistics to stderr.",
        'python -m numpy_bloom.generate "Todos los seres humanos nacen" --max-new-tokens 20',
    )
    add = command.add_argument
    add("prompt", metavar="PROMPT", nargs="?", help="the text to continue; - reads it from stdin")
    add(
        "--prompts-file",
        type=path_argument,
        metavar="F",
        help="many texts, continued together: one a line, or JSON Lines with prompt; - is stdin",
    )
    add(
        "-n",
        "--num-samples",
        type=int,
        default=1,
        metavar="K",
        help="continuations of each prompt (default: %(default)s)",
    )
    add_model_options(command, cluster=True)
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"default: {GenerationOptions.max_new_tokens}",
    )
    add("--temperature", type=float, metavar="F", help="0 is greedy (default, unless sampling)")
    add("--top-k", type=int, metavar="N", help="sample among the N likeliest tokens")
    add("--top-p", type=float, metavar="F", help="sample among the likeliest with this sum")
    add("--min-p", type=float, metavar="F", help="sample among tokens with this share of the best")
    add("--repetition-penalty", type=float, metavar="F", help="above 1: repeat less")
    add(
        "--num-beams",
        type=int,
        default=1,
        metavar="N",
        help="above 1: beam search, the likeliest of N texts that are followed at once",
    )
    add(
        "--length-penalty",
        type=float,
        default=1.0,
        metavar="F",
        help="of beams: above 0 favours long texts (default: %(default)s)",
    )
    add("--early-stopping", action="store_true", help="of beams: end when N texts have ended")
    add("--seed", type=int, metavar="N", help="makes sampling repeatable")
    add("--stop", action="append", metavar="TEXT", help="end before TEXT; repeatable")
    add(
        "--draft-model",
        type=path_argument,
        metavar="DIR",
        help="a smaller model with the same vocabulary, held in memory, that guesses at tokens; or "
        "prompt-lookup: the text itself",
    )
    add(
        "--draft-tokens",
        type=int,
        metavar="N",
        help=f"guesses for each pass, at most (default: {GenerationOptions.draft_tokens})",
    )
    add(
        "--prompt-cache",
        type=path_argument,
        metavar="FILE",
        help="keep the text here after every pass; what it has in common with the text that is "
        "there is not computed again",
    )
    add("--resume", action="store_true", help="go on with the text in the prompt cache")
    add(
        "--ignore-damaged-cache",
        action="store_true",
        help="do without what is damaged of the prompt cache",
    )
    form = command.add_mutually_exclusive_group().add_argument
    form("--json", action="store_true", help="one JSON object with tokens, text and statistics")
    form("--show-tokens", action="store_true", help="a line for each token: probability, seconds")
    return command
