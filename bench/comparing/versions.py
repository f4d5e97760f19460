"""What may be interleaved: a git ref, a folder with a checkout, a wheel, or a Python file with a layer."""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bench.errors import RequestError

GIT_TIMEOUT_S = 120.0
KINDS = "a git ref, a folder with a checkout, a wheel (.whl), or FILE.py[:Class]"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the layers.

    Attributes:
        label: what to call it; no absolute path.
        path: folder that its process imports `impls` from; None is the moebench that compares.
        layer: ``FILE.py:Class`` where the version is one file, else None.
        root: the version's whole tree, where files of implementations are looked for first; None where there is none.
        home: the folder that stands for ``root`` in the user's own checkout.
    """

    label: str
    path: Path | None = None
    layer: str | None = None
    root: Path | None = None
    home: Path | None = None

    def implementation(self, name: str) -> str:
        """What this version builds for an implementation that the sweep names."""
        if self.layer is not None:
            return self.layer
        file, colon, class_name = name.rpartition(":")
        if not colon or not file.endswith(".py") or self.root is None or self.home is None:
            return name
        place = Path(file).resolve()
        kept = self.root / place.relative_to(self.home) if place.is_relative_to(self.home) else place
        return f"{kept}:{class_name}" if kept.is_file() else name


def open_version(text: str, folder: Path) -> Version:
    """The version that ``text`` stands for, unpacked into the empty ``folder`` where it has to be.

    Raises:
        RequestError: there is no such version, or it holds no layers.
    """
    file, colon, class_name = text.rpartition(":") if ".py:" in text else (text, "", "")
    path = Path(file)
    if path.suffix == ".py":
        return _from_file(path, class_name if colon else "")
    if path.suffix == ".whl":
        return _from_wheel(path, folder)
    if path.is_dir():
        return _from_folder(path, folder)
    return _from_git(text, folder)


def _from_file(path: Path, class_name: str) -> Version:
    if not path.is_file():
        raise RequestError(f"there is no file {path}; expected {KINDS}")
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise RequestError(f"{path} is no Python file: {error}") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    layers = [name for name, node in classes.items() if _has_compute(node)]
    if not class_name:
        if len(layers) != 1:
            found = f"found {', '.join(layers)}: say which, as in {path}:{layers[0]}" if layers else "found none"
            raise RequestError(f"{path} should have one class with a `compute` method, {found}")
        class_name = layers[0]
    label = path.name if path.is_absolute() else str(path)
    return Version(f"{label}:{class_name}", layer=f"{path.resolve()}:{class_name}")


def _has_compute(node: ast.ClassDef) -> bool:
    return any(isinstance(part, ast.FunctionDef) and part.name == "compute" for part in node.body)


def _from_wheel(path: Path, folder: Path) -> Version:
    if not path.is_file():
        raise RequestError(f"there is no wheel {path}; expected {KINDS}")
    try:
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(folder)  # noqa: S202 - zipfile itself keeps members inside the folder
    except (zipfile.BadZipFile, OSError) as error:
        raise RequestError(f"{path} cannot be unpacked: {error}") from None
    return Version(path.name, path=_with_layers(folder, str(path)))


def _from_folder(path: Path, folder: Path) -> Version:
    _with_layers(path, str(path))
    # a copy: what is edited meanwhile must not come in
    shutil.copytree(path / "impls", folder / "impls", ignore=shutil.ignore_patterns("__pycache__"))
    return Version(f"{path.resolve().name} (folder)", path=folder, root=path.resolve(), home=Path.cwd())


def _from_git(ref: str, folder: Path) -> Version:
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}").decode().strip()
    if not commit:
        raise RequestError(f"{ref!r} is nothing that can be compared; expected {KINDS}")
    # from the top: elsewhere git archives the current folder alone
    top = Path(_git("rev-parse", "--show-toplevel").decode().rstrip("\n")).resolve()
    archive = _git("-C", str(top), "archive", "--format=tar", commit)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        if hasattr(tarfile, "data_filter"):  # from Python 3.11.4
            files.extractall(folder, filter="data")
        else:
            files.extractall(folder)  # noqa: S202 - git made it, of the user's own commit
    label = commit[:10] if commit.startswith(ref) else f"{ref} ({commit[:10]})"
    # somebody's own repository has layers of its own, which run on the moebench that compares
    return Version(label, path=folder if (folder / "impls" / "__init__.py").is_file() else None, root=folder, home=top)


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(
            ["git", *arguments],  # noqa: S607 - the user's own git
            capture_output=True, timeout=GIT_TIMEOUT_S, check=False,
            start_new_session=True,  # Ctrl-C in the terminal is for the harness, which then decides
        )  # fmt: skip
    except FileNotFoundError:
        raise RequestError(f"git is not installed; expected {KINDS}") from None
    except subprocess.TimeoutExpired:
        raise RequestError(f"git took more than {GIT_TIMEOUT_S:.0f} s") from None
    if done.returncode and "archive" in arguments:
        raise RequestError(f"git archive failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout if done.returncode == 0 else b""


def _with_layers(folder: Path, name: str) -> Path:
    if not (folder / "impls" / "__init__.py").is_file():
        raise RequestError(f"{name} holds no package `impls`: not a moebench")
    return folder
