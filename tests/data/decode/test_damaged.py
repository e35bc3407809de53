"""Damaged media: decoded, or refused with one line; never a crash, another exception, noise, or a second of work."""

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damaged_media import PICTURES, SOUNDS, SUFFIXES, damaged_media, whole

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.decode import Decoder, Undecodable, probe
from vigil_data.importers.manifest import Manifest
from vigil_data.items import Item
from vigil_data.quality.checks.check import check_dataset
from vigil_data.quality.checks.removal import move_to_quarantine
from vigil_data.specs import AudioInput, ImageInput, Inputs

INPUTS = Inputs(image=ImageInput(size=16), audio=AudioInput(rate=8_000, window=0.25, max_windows=8))
MAX_CPU_SECONDS = 1.0


def peak_memory(*, reset: bool = False) -> int:
    """Return the most memory that this process has had since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) * 1024


@pytest.mark.prove
@pytest.mark.filterwarnings("error")
def test_decoder_decodes_or_refuses_damaged_media(proofs: Callable[[int, int], int], capfd: pytest.CaptureFixture[str]) -> None:
    decoder, counts = Decoder(INPUTS, ()), Counter[tuple[str, str]]()
    for form in (*PICTURES, *SOUNDS):
        assert decoder.decode(Item("whole", **{"image" if form in PICTURES else "audio": (whole(form),)})).segments
    for damaged in damaged_media(proofs(400, 20_000), seed=1):
        item = Item("damaged", **{damaged.modality: (damaged.data,)})  # type: ignore[arg-type]
        refusal = None
        try:
            probe(item)
            decoded = decoder.decode(item)
        except Undecodable as error:
            refusal = str(error)
        if refusal is None:
            (segments,) = decoded.segments.values()
            assert all(np.isfinite(array).all() for segment in segments.arrays for array in segment.values())
        else:
            assert len(refusal.splitlines()) == 1
        counts[damaged.form, "decoded" if refusal is None else "refused"] += 1
    assert capfd.readouterr() == ("", "")
    assert {form for form, outcome in counts if outcome == "refused"} == {*PICTURES, *SOUNDS}
    for form in (*PICTURES, *SOUNDS):
        print(f"{form}: {counts[form, 'decoded']} decoded, {counts[form, 'refused']} refused")


@pytest.mark.prove
def test_import_and_check_of_damaged_media_quarantine_or_decode_each(tmp_path: Path, proofs: Callable[[int, int], int]) -> None:
    files = list(damaged_media(proofs(200, 10_000)))
    rows = ["id,image,audio"]
    for number, damaged in enumerate(files):
        name = f"{number}{SUFFIXES.get(damaged.form, f'.{damaged.form.lower()}')}"
        (tmp_path / name).write_bytes(damaged.data)
        rows.append(f"{number},{name}," if damaged.modality == "image" else f"{number},,{name}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    to = tmp_path / "dataset"

    before = peak_memory(reset=True)
    marks = [time.process_time()]
    manifest = Manifest(tmp_path / "m.csv")
    assert manifest.check() == len(files)
    written = write(to, manifest.items(), places=manifest.places, progress=lambda _: marks.append(time.process_time()))
    slowest_import = max(np.diff(marks[1:]))
    imported = {row["id"] for row in Dataset(to).quarantine().to_pylist()}
    assert written.kept + written.quarantined == len(files)

    report = check_dataset(Dataset(to), workers=2)
    move_to_quarantine(to, report)
    import_and_check = peak_memory() - before

    dataset = Dataset(to)
    refused = {row["id"]: row for row in dataset.quarantine().to_pylist()}
    assert len(dataset) + len(refused) == len(files)
    assert all(row["reason"] and row["modality"] in ("image", "audio") and row["index"] == 0 for row in refused.values())
    assert not {"timeout", "crash"} & {finding.kind for finding in report.findings}
    # What is left decodes, each within a second of work.
    decoder, slowest = Decoder(INPUTS, ()), (0.0, "")
    kept = set()
    for row in range(len(dataset)):
        (item,) = dataset.take([row])
        start = time.process_time()
        assert decoder.decode(item).segments
        damaged = files[int(item.id)]
        slowest = max(slowest, (time.process_time() - start, f"{damaged.form} {damaged.kind} of {len(damaged.data):,} bytes"))
        kept.add(int(item.id))
    assert max(slowest[0], slowest_import) < MAX_CPU_SECONDS
    assert import_and_check < 500e6
    outcomes = Counter(
        (damaged.kind, "decoded" if number in kept else "import" if str(number) in imported else "check")
        for number, damaged in enumerate(files)
    )
    kinds = sorted({kind for kind, _ in outcomes})
    assert {outcome for _, outcome in outcomes} == {"decoded", "import", "check"}
    print(f"{'':16}{'files':>8}{'decoded':>10}{'quarantined by import':>24}{'by check':>10}")
    for kind in kinds:
        counts = [outcomes[kind, outcome] for outcome in ("decoded", "import", "check")]
        print(f"{kind:16}{sum(counts):8,}{counts[0]:10,}{counts[1]:24,}{counts[2]:10,}")
    print(f"slowest file: import {slowest_import:.2f} s, decoding {slowest[0]:.2f} s of CPU ({slowest[1]})")
    print(f"memory of import and check: {import_and_check / 1e6:,.0f} MB more than before")
