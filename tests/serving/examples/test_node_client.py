"""The example client on Node decides as Vigil does: golden cases, and media that they do not have."""

import base64
import io
import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vigil_data.decode.image import decode_image
from vigil_serving.bundle import manifest
from vigil_serving.bundle.metadata import ImageInputSettings
from vigil_serving.runtime.scorer import Scorer

TOLERANCE = 1e-4
TEXTS = (
    "Win $100 now, ça va? 你好 привет",
    "A typed [SEP] and [CLS] is text; so is [PAD].",
    "naïve CAFÉ \u00a0 tab\tand\nlines\u200b",
    "deal " * 70,
    "ﬁne ｄｅａｌ, dе\u200bal nоw ™ I\u0301 1\u200b\u20e3 \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "w i n  n 0 w, n3w d34l5 in 1945 and covid19; a b, 1 2 3 4 a, (n o w) 7h3 \u200bd 3\u200b 4 l n\u043ew1",
    "emoji 🙂‍↔️ 👩🏽‍🚒 and a lone \ud800 surrogate",
    "\u200b",
    " \n ",
    "",
)


@pytest.fixture(scope="session")
def node_client(repository: Path) -> list[str]:
    """The command of the example client."""
    folder = repository / "serving" / "examples" / "node"
    reason = None if shutil.which("node") else "node is not installed"
    if reason is None and not (folder / "node_modules").is_dir():
        reason = f"the client's packages are not installed; run `npm ci` in {folder}"
    if reason:
        (pytest.fail if os.environ.get("VIGIL_REQUIRE_ALL") == "1" else pytest.skip)(reason)
    return ["node", str(folder / "client.mjs")]


def test_node_client_agrees_on_the_golden_cases(node_client, text_image_bundle) -> None:
    done = _run(node_client, "check", text_image_bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = len((text_image_bundle / manifest.GOLDEN_ITEMS).read_text().splitlines())
    assert done.stdout.startswith(f"{cases} golden cases, ")
    assert ", 0 items with another decision\n" in done.stdout


def test_node_client_skips_golden_cases_with_audio(node_client, exported) -> None:
    done = _run(node_client, "check", exported.bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cases with audio were not run" in done.stdout


def test_node_client_decides_other_items_as_the_scorer_does(node_client, text_image_bundle, tmp_path) -> None:
    items = [{"id": f"text-{n}", "text": [text], "image": []} for n, text in enumerate(TEXTS)]
    items += [{"id": name, "text": ["new deal"], "image": [data]} for name, data in _pictures().items()]
    items += [
        {"id": f"market-{market}", "text": [text], "image": [], "market": market} for market in ("de", "fr") for text in TEXTS
    ]
    items += [{"id": f"{name} alone", "text": [], "image": [data]} for name, data in _pictures().items()]
    items += [{"id": "many", "text": list(TEXTS), "image": list(_pictures().values())}]
    found = _decide(node_client, text_image_bundle, items, tmp_path)
    expected = [decision.to_dict() for decision in Scorer(text_image_bundle).score(items)]
    assert [decision["error"] for decision in expected] == [None] * len(items)
    assert len({decision["action"] for decision in expected}) >= 3, "the items differ enough to show a mistake"
    assert {decision["review"] for decision in expected} == {False, True}
    for here, due in zip(found, expected, strict=True):
        for name in ("id", "action", "review"):
            assert here[name] == due[name]
        assert here["labels"] == list(due["labels"])
        assert here["probabilities"] == pytest.approx(due["probabilities"], abs=TOLERANCE)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_node_client_decodes_images_as_vigil_does(node_client, tmp_path, fit: Literal["crop", "pad", "squash"]) -> None:
    spec = ImageInputSettings(size=45, fit=fit, background=90, max_images=1, max_pixels=10**7)
    pictures = _pictures()
    # Vigil decodes these at 1/2 to 1/8; the client averages blocks, which differs by part of a grey level.
    large = {f"{w}, {s}": _jpeg(_photo(w, h), subsampling=s) for w, h in ((400, 430), (1203, 805)) for s in (0, 2)}
    differences = _pixel_differences(node_client, {**pictures, **large}, spec, tmp_path)
    assert {name: differences[name].max() for name in pictures} == dict.fromkeys(pictures, 0)
    assert all(0 < differences[name].mean() < 1 for name in large), {name: differences[name].mean() for name in large}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "is not a bundle: it has no bundle.json"),
        (lambda folder: (folder / "bundle.json").write_text('{"format": 4}'), "a bundle of format 4, but this client reads 6"),
        (
            lambda folder: (folder / "thresholds.json").write_text("{}"),
            "thresholds.json is missing or was changed after the export",
        ),
        (lambda folder: (folder / "onnx" / "text.onnx").unlink(), "onnx/text.onnx is missing or was changed after the export"),
    ],
)
def test_node_client_refuses_other_bundles_in_one_line(node_client, text_image_bundle, tmp_path, change, message) -> None:
    folder = shutil.copytree(text_image_bundle, tmp_path / "bundle")
    change(folder)
    done = _run(node_client, "check", folder)
    assert done.returncode == 2
    assert done.stderr == f"error: {folder}{'' if message.startswith('is not') else ':'} {message}\n"


def test_node_client_refuses_undecodable_items_in_one_line(node_client, exported, text_image_bundle, tmp_path) -> None:
    for bundle, item, message in (
        (exported.bundle, {"audio": ["AAAA"]}, "item x: this client does not decode audio"),
        (text_image_bundle, {"image": ["AAAA"]}, "item x: image[0]: "),
        (text_image_bundle, {"image": [_encoded(_png(Image.new("L", (1001, 1000))))]}, "more than max_pixels 1000000"),
    ):
        (tmp_path / "items.jsonl").write_text(json.dumps({"id": "x", "text": [], "image": [], "audio": [], **item}))
        done = _run(node_client, "score", bundle, tmp_path / "items.jsonl")
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_node_client_finds_a_graph_that_decides_otherwise(node_client, text_image_bundle, tmp_path) -> None:
    folder = shutil.copytree(text_image_bundle, tmp_path / "bundle")
    lines = [json.loads(line) for line in (folder / manifest.GOLDEN_DECISIONS).read_text().splitlines()]
    lines[-1]["decisions"][0]["probabilities"]["scam"] += 2e-4
    (folder / manifest.GOLDEN_DECISIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest.write_manifest(folder)
    done = _run(node_client, "check", folder)
    assert done.returncode == 1
    assert f"the worst is golden case {lines[-1]['case']}" in done.stdout


def _decide(node_client: list[str], bundle: Path, items: list[dict[str, Any]], tmp_path: Path) -> list[dict[str, Any]]:
    lines = [json.dumps({**item, "image": [_encoded(image) for image in item["image"]]}) for item in items]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    done = _run(node_client, "score", bundle, tmp_path / "items.jsonl")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _pixel_differences(
    node_client: list[str], images: dict[str, bytes], spec: ImageInputSettings, tmp_path: Path
) -> dict[str, NDArray[np.int64]]:
    """Decode images by the client and by Vigil, and return the absolute differences of their pixels."""
    script = f"""
        import {{ readFileSync, writeFileSync }} from "node:fs";
        import {{ pixelsOf }} from "{Path(node_client[1]).with_name("images.mjs")}";
        const images = JSON.parse(readFileSync(0, "utf8"));
        const spec = {json.dumps(asdict(spec))};
        const pixels = await Promise.all(images.map((image) => pixelsOf(Buffer.from(image, "base64"), spec)));
        writeFileSync("{tmp_path / "pixels"}", Buffer.concat(pixels));
    """
    given = json.dumps([_encoded(data) for data in images.values()])
    subprocess.run(["node", "--input-type=module", "--eval", script], input=given, text=True, check=True, timeout=120)
    here = np.fromfile(tmp_path / "pixels", np.uint8).reshape(len(images), 3, spec.size, spec.size).astype(np.int64)
    due = [next(decode_image(data, 0, 1, spec))[0]["pixels"] for data in images.values()]
    return {name: np.abs(ours - theirs) for name, ours, theirs in zip(images, here, due, strict=True)}


def _run(node_client: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*node_client, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def _photo(width: int, height: int) -> Image.Image:
    """A picture with soft gradients, sharp edges and a little noise."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    planes = [
        127 + 100 * np.sin(x / 37 + y / 53),
        (x * 255 / width + 40 * ((x // 16 + y // 16) % 2)) % 256,
        255 - y * 200 / height,
    ]
    noise = np.random.default_rng(0).normal(0, 3, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(planes, axis=-1) + noise, 0, 255).astype(np.uint8))


def _pictures() -> dict[str, bytes]:
    """Images of every kind that the page describes, in lossless formats."""
    photo = _photo(90, 61)
    clear = photo.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    palette = photo.quantize(16)
    animation = io.BytesIO()
    palette.save(animation, "GIF", save_all=True, append_images=[_photo(90, 61).rotate(90).quantize(16)])
    turned = Image.Exif()
    turned[0x0112] = 6
    webp = io.BytesIO()
    clear.save(webp, "WEBP", lossless=True, exact=True)
    wide_grey = Image.fromarray((np.arange(40 * 30).reshape(30, 40) * 54).astype(np.uint16))
    return {
        "rgb": _png(photo),
        "tiny": _png(_photo(5, 9)),
        "wide": _png(_photo(300, 21)),
        "large": _png(_photo(640, 500)),
        "grey": _png(photo.convert("L")),
        "grey and alpha": _png(clear.convert("LA")),
        "alpha": _png(clear),
        "palette": _png(palette),
        "transparent colour": _png(palette, transparency=3),
        "bilevel": _png(photo.convert("1")),
        "16-bit grey": _png(wide_grey),
        "turned": _png(photo, exif=turned),
        "animation": animation.getvalue(),
        "lossless WebP": webp.getvalue(),
        "JPEG": _jpeg(_photo(110, 93), subsampling=2),
        "turned JPEG": _jpeg(_photo(110, 93), subsampling=0, exif=turned),
        "grey JPEG": _jpeg(_photo(110, 93).convert("L")),
    }


def _png(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _jpeg(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
