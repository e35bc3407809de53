"""Tamper evidence: altered bytes, removed and added files, rewritten manifests, and signatures by other keys are refused."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from vigil_data.errors import UserError
from vigil_data.filesystem import write_json
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import load_bundle
from vigil_serving.bundle.signing import load_private_key, sign_bundle
from vigil_serving.runtime.scorer import Scorer


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(bundle_copy: Path, tmp_path: Path) -> tuple[Path, Path]:
    private, public = write_keys(tmp_path, "owner")
    sign_bundle(bundle_copy, load_private_key(private))
    return bundle_copy, public


def flip(path: Path, place: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ value]))


@pytest.mark.prove
def test_load_bundle_refuses_every_flipped_byte(signed: tuple[Path, Path], proofs) -> None:
    """Flip some bytes of every file, and all bytes of the manifest and of the signature."""
    bundle, public = signed
    tries, rng = 0, random.Random(5)
    files = [path for path in sorted(bundle.rglob("*")) if path.is_file()]
    all_bytes = (manifest.MANIFEST, manifest.SIGNATURE_FILE)
    for path in files:
        size = path.stat().st_size
        places = range(size) if path.name in all_bytes else rng.sample(range(size), min(size, proofs(12, 400)))
        for place in places if path.name != manifest.MANIFEST else rng.sample(places, proofs(300, size)):
            value = 1 << rng.randrange(8)
            flip(path, place, value)
            with pytest.raises(UserError):
                # Without the key, which alone would find a change of the manifest.
                load_bundle(bundle, public_key=public if path.name == manifest.SIGNATURE_FILE else None)
            flip(path, place, value)
            tries += 1
    load_bundle(bundle, public_key=public)
    assert tries > 500
    print(f"{tries} flipped bytes in {len(files)} files, all refused")


def test_scorer_refuses_every_removed_or_added_file(exported, bundle_copy: Path, tmp_path: Path) -> None:
    Scorer(bundle_copy)
    for path in [path for path in sorted(bundle_copy.rglob("*")) if path.is_file()]:
        kept = tmp_path / "kept"
        shutil.move(path, kept)
        with pytest.raises(UserError):
            Scorer(bundle_copy)
        shutil.move(kept, path)
    for folder in [bundle_copy, *(path for path in bundle_copy.rglob("*") if path.is_dir())]:
        (folder / "added").write_bytes(b"")
        with pytest.raises(UserError, match="added was added after the export"):
            Scorer(bundle_copy)
        (folder / "added").unlink()
    (bundle_copy / "linked").symlink_to(tmp_path)
    with pytest.raises(UserError, match="linked was added"):
        Scorer(bundle_copy)
    (bundle_copy / "linked").unlink()
    Scorer(bundle_copy)


def test_scorer_refuses_two_exchanged_files(bundle_copy: Path) -> None:
    a, b = bundle_copy / "onnx" / "text.onnx", bundle_copy / "onnx" / "image.onnx"
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    with pytest.raises(UserError, match=r"onnx/image\.onnx was changed.*\n.*onnx/text\.onnx was changed"):
        Scorer(bundle_copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["files"].popitem() and content,
        lambda content: {**content, "format": 2},
        lambda content: {**content, "more": 1},
        lambda content: {**content, "files": {name: {**facts, "bytes": 0} for name, facts in content["files"].items()}},
        lambda content: {**content, "files": list(content["files"])},
        lambda content: {"format": 1},
        lambda content: 7,
    ],
)
def test_scorer_refuses_a_rewritten_manifest(bundle_copy: Path, change) -> None:
    content = json.loads((bundle_copy / manifest.MANIFEST).read_text())
    write_json(bundle_copy / manifest.MANIFEST, change(content))
    with pytest.raises(UserError) as caught:
        Scorer(bundle_copy)
    assert all(str(bundle_copy) in line for line in caught.value.lines)


def test_check_signature_accepts_only_the_key_that_signed(signed: tuple[Path, Path], exported, tmp_path: Path) -> None:
    bundle, public = signed
    assert len((bundle / manifest.SIGNATURE_FILE).read_bytes()) == 64
    assert Scorer(bundle, public_key=public).bundle.digest == manifest.check_files(exported.bundle), (
        "the digest is the manifest's"
    )
    _, other = write_keys(tmp_path, "other")
    with pytest.raises(UserError, match=r"manifest\.sig is not a signature of this manifest\.json by the key"):
        Scorer(bundle, public_key=other)
    (bundle / "README.md").write_text("other words")
    manifest.write_manifest(bundle)
    Scorer(bundle)  # consistent, but not signed by the key
    with pytest.raises(UserError, match="is not a signature of this"):
        Scorer(bundle, public_key=public)
    (bundle / manifest.SIGNATURE_FILE).unlink()
    with pytest.raises(UserError, match=r"is not signed: it has no manifest\.sig; export it with --sign"):
        Scorer(bundle, public_key=public)


def test_load_private_key_and_check_signature_refuse_other_keys(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, public = signed
    key = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    rsa_public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "rsa.pub.pem").write_bytes(rsa_public)
    (tmp_path / "words").write_text("no key")
    with pytest.raises(UserError, match="not an ed25519 private key"):
        load_private_key(tmp_path / "rsa.pem")
    with pytest.raises(UserError, match="not an ed25519 public key"):
        load_bundle(bundle, public_key=tmp_path / "rsa.pub.pem")
    with pytest.raises(UserError, match="not a key in PEM"):
        load_bundle(bundle, public_key=tmp_path / "words")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_private_key(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a key in PEM"):
        load_private_key(public)


def test_load_bundle_names_the_malformed_field(bundle_copy: Path) -> None:
    content = json.loads((bundle_copy / manifest.METADATA).read_text())
    for change, problem in [
        ({"labels": "scam"}, "bundle.json.labels: must be a list"),
        ({"modalities": ["text", "smell"]}, "bundle.json.modalities.1: must be 'text' or 'image' or 'audio'"),
        ({"graphs": {"text": {}}}, "bundle.json.graphs.text: lacks file, inputs, outputs"),
        ({"surprise": 1}, "bundle.json: has unknown surprise"),
        ({"modalities": ["text"]}, "do not name the same modalities"),
        ({"variants": {"fp32": {"text": "text"}}}, "do not name the same modalities"),
    ]:
        write_json(bundle_copy / manifest.METADATA, {**content, **change})
        manifest.write_manifest(bundle_copy)
        with pytest.raises(UserError, match="export the bundle again") as caught:
            Scorer(bundle_copy)
        assert problem in str(caught.value)


def test_scorer_refuses_changed_golden_outputs(bundle_copy: Path) -> None:
    path = bundle_copy / manifest.GOLDEN_OUTPUTS
    with np.load(path) as outputs:
        changed = {name: array + np.float32(1e-3) for name, array in outputs.items()}
    np.savez_compressed(path, **changed)
    with pytest.raises(UserError, match=r"golden/outputs\.npz was changed"):
        Scorer(bundle_copy)
