"""`policy.json` and the files that it vouches for, read byte by byte against their hashes."""

import hashlib
import json
import pathlib
from typing import Any

from .errors import BundleError

MANIFEST = "policy.json"
FORMAT = "rlplatform-bundle"
FORMAT_VERSION = 1

_DIGITS = 64
_PARTS = ("environment", "observation", "action", "variants", "default", "files")


def digest(text: str, recorded: str) -> str:
    """SHA-256 of a manifest's text with its own digest, `recorded`, read as zeros."""
    return hashlib.sha256(text.replace(recorded, "0" * _DIGITS, 1).encode()).hexdigest()


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """What `policy.json` says.

    Raises:
        BundleError: there is no such file, it was changed after it was written, or it is of a newer format.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a policy bundle: it has no {MANIFEST}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BundleError(f"{path} was changed after it was written: it is not text") from None
    try:
        manifest = json.loads(text)
    except ValueError:
        raise BundleError(f"{path} was changed after it was written: it is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path} does not describe a policy bundle: its format is not {FORMAT!r}")
    if manifest.get("version") != FORMAT_VERSION:
        raise BundleError(
            f"{path} is of bundle version {manifest.get('version')!r}, and this runtime reads version {FORMAT_VERSION}"
        )
    recorded = manifest.get("sha256")
    if not isinstance(recorded, str) or len(recorded) != _DIGITS or digest(text, recorded) != recorded:
        raise BundleError(f"{path} was changed after it was written: its bytes do not match its own sha256")
    missing = [part for part in _PARTS if part not in manifest]
    if missing:
        raise BundleError(f"{path} has no {missing[0]!r}")
    return manifest


def read_file(folder: pathlib.Path, manifest: dict[str, Any], name: str) -> bytes:
    """The bytes of one file of the bundle, which are those that were hashed when it was written.

    Raises:
        BundleError: the file is not part of the bundle, is missing, or has other bytes.
    """
    if name not in manifest["files"]:
        raise BundleError(f"{folder} has no file {name}; it has {', '.join(sorted(manifest['files']))}")
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
        raise BundleError(f"{folder / name} was changed after it was written: its bytes do not match {MANIFEST}")
    return content
