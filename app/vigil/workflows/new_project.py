"""A new project for `vigil init`: example posts about harmless subjects, a tokenizer, a recipe, a taxonomy and a policy."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, write_failure

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
ROWS = 300
SPLITS = ("train", "validation", "train", "validation", "test")
"""Of every five groups of posts; a policy needs many validation items to show that its constraints hold."""

COMMANDS = (
    "vigil data import manifest manifest.jsonl --to dataset",
    "vigil recipe check recipe.yaml",
    "vigil train recipe.yaml",
    "vigil policy compile policy.yaml runs/$name && vigil evaluate runs/$name",
    "vigil export runs/$name --to bundle && vigil serve bundle",
)
"""The five steps of a project, to be run in its folder; ``$name`` is the recipe's name."""

SENTENCES: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = (
    (
        frozenset({"spam"}),
        (
            "You have won {prize}! Send your address and a small fee to claim it {day}",
            "Your parcel is on hold, confirm your card number at {link} {day}",
            "Earn {amount} a day from home without any skill, write to me now",
            "Your account will be closed {day}, enter your password at {link}",
            "Double your savings by {day}, a small deposit of {amount} is enough",
            "Congratulations, you were chosen for {prize}, click {link} before {day}",
        ),
    ),
    (
        frozenset({"spam", "promotion"}),
        (
            "Cheap {goods} {percent} off, order at {link} and pay by gift card only",
            "Last chance for {goods}: send {amount} {day} and get {percent} back, sure",
        ),
    ),
    (
        frozenset({"promotion"}),
        (
            "Our new {goods} are in stock, {percent} off until {day}",
            "Visit our {shop} in {street}: free coffee with every order {day}",
            "Book a {service} this week and save {percent}",
            "Use the code HELLO for {percent} off your first {service}",
            "The {shop} in {street} now sells {goods}, come and see us {day}",
        ),
    ),
    (
        frozenset(),
        (
            "I finally repaired the {goods} that I bought in spring",
            "The {shop} in {street} was closed again {day}",
            "Does anyone know how long a {service} takes?",
            "I won the chess game against my brother {day}",
            "We walked along {street} {day} and it rained all the time",
            "My parcel with the {goods} arrived {day}, all is well",
            "The {service} {day} was better than I expected, thank you",
            "Who is coming to the meeting in {street} {day}?",
            "My savings went into new {goods}, and I regret nothing",
            "{percent} of the class passed the test {day}, well done",
        ),
    ),
)
"""The labels of an example post, and the sentences that it can be."""

WORDS = {
    "prize": ("a new phone", "a holiday", "a voucher", "the first prize", "a car"),
    "link": ("www.prize.invalid", "www.parcel.invalid", "www.claim.invalid", "this link"),
    "amount": ("50 euros", "200 euros", "90 dollars", "500 dollars"),
    "day": ("today", "tomorrow", "on Friday", "on Monday", "on Sunday", "this evening"),
    "percent": ("10 %", "20 %", "30 %", "half", "70 %"),
    "goods": ("shoes", "lamps", "bicycles", "watches", "headphones", "garden chairs"),
    "shop": ("bakery", "bookshop", "flower shop", "bicycle shop", "café"),
    "street": ("Mill Street", "Station Road", "the old town", "Garden Lane"),
    "service": ("haircut", "guitar lesson", "language course", "boat trip", "yoga class"),
}


class Project(NamedTuple):
    """A new project: its name, which is the recipe's and the policy's too, and the files written."""

    name: str
    files: list[Path]


def create_project(folder: StrPath) -> Project:
    """Fill a new or empty folder with a project that `vigil recipe check` accepts.

    Args:
        folder: the project's folder; the project is named after it.

    Raises:
        UserError: if the folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not an empty folder; name a new one")
    name = project_name(folder)
    rows = list(example_rows())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "manifest.jsonl").write_text(manifest, encoding="utf-8")
        values = {"name": name, "rows": ROWS, "commands": "\n".join(commands(name))}
        values["vocabulary"] = write_tokenizer([row["text"] for row in rows], folder / "tokenizer.json")
        for file in sorted(TEMPLATES.iterdir()):
            text = Template(file.read_text(encoding="utf-8")).substitute(values)
            (folder / file.name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise write_failure(folder, error) from error
    return Project(name, sorted(folder.iterdir()))


def project_name(folder: Path) -> str:
    """Return a folder's name as a name for a recipe, a policy and a taxonomy."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")
    return (name if name[:1].isalpha() else f"project_{name}".rstrip("_"))[:64]


def commands(name: str) -> list[str]:
    """Return the five steps for a project."""
    return [Template(command).substitute(name=name) for command in COMMANDS]


def example_rows() -> Iterator[dict[str, Any]]:
    """Generate the example posts, the same ones every time; one in thirteen, of every kind, has an unknown target."""
    chance = random.Random(0)  # noqa: S311 (not for security)
    seen: set[str] = set()
    number = 0
    while number < ROWS:
        labels, sentences = SENTENCES[(0, 2, 3, 1, 3, 2, 0, 3)[number % 8]]
        text = chance.choice(sentences).format_map({slot: chance.choice(words) for slot, words in WORDS.items()})
        if text in seen:
            continue
        seen.add(text)
        targets: dict[str, float | None] = {label: float(label in labels) for label in ("spam", "promotion")}
        if number % 13 == 5:
            targets["promotion"] = None
        yield {
            "id": f"post-{number:03}",
            "text": text[0].upper() + text[1:],
            **{f"target.{label}": target for label, target in targets.items()},
            "split": SPLITS[(number // 8) % len(SPLITS)],
            "channel": ("comment", "message", "review")[chance.randrange(3)],
            "author": f"author-{chance.randrange(90):02}",
        }
        number += 1


def write_tokenizer(texts: list[str], file: Path) -> int:
    """Write a WordPiece tokenizer whose pieces are the words of some texts and their characters.

    Tokenizers' own trainer gives another vocabulary each time.

    Returns:
        The size of the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))})
    characters = sorted({character for word in words for character in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{character}" for character in characters), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 (a token of text)
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.save(str(file))
    return len(vocabulary)
