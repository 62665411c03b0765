"""What one worker of a cluster does: its cards, its model, its rows. Importing it needs neither torch nor Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cards import CPU, show_own_cards


BOOKKEEPING = ("row", "id", "references", "extra", "attempts")
"""Of a line of the manifest: what the driver knows, so that it does not travel."""


class Worker:
    """Draws rows. Made cheaply; `ready` loads the model.

    What goes wrong comes back as a dict: an exception would bring a traceback of another process along, and could need
    torch to be read.

    Args:
        settings: Those of `loading.load_painter`, and ``kind`` and ``asked`` (see `cards.show_own_cards`),
            ``probe`` (see `take_probe`) and ``threads`` (see `same_threads`).
    """

    def __init__(self, settings: Mapping[str, Any]):
        self.settings = settings
        # Each stage has a thread: while a row is drawn, the next is read and the one before is saved.
        self._loading, self._drawing, self._saving = (ThreadPoolExecutor(1) for _ in range(3))
        self._painter: Any = None

    def ready(self) -> dict[str, Any]:
        """Load the model.

        Returns:
            Where this worker is and what with, or ``fatal``: why it cannot work.
        """
        try:
            return self._drawing.submit(self._ready).result()
        except Exception as error:  # whatever it is, one sentence of it goes home
            return {"fatal": sentence(error), "node": socket.gethostname()}

    def draw(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Draw a row.

        Args:
            job: ``row`` and ``fingerprint``.

        Returns:
            Its line of the manifest, ``fatal`` (what is wrong with the run) or ``broken`` (with this worker).
        """
        from ...errors import DeepGenError
        from .rows import Row
        from .survey import Job

        try:
            row = Row(**job["row"])
            loaded = self._loading.submit(self._painter.load, row).result()
            drawn = self._drawing.submit(self._painter.draw, loaded).result()
            entry = self._saving.submit(self._painter.save, Job(row, job["fingerprint"], {}), drawn).result()
        except (OSError, DeepGenError) as error:
            return {"fatal": sentence(error), "node": socket.gethostname()}
        except Exception as error:  # a card that is out of order fails with any
            return {"broken": f"{type(error).__name__}: {sentence(error)}", "node": socket.gethostname()}
        return {name: value for name, value in asdict(entry).items() if name not in BOOKKEEPING}

    def load(self) -> Any:
        """What draws: a `drawing.Painter`."""
        from .loading import load_painter

        require_model(self.settings)
        return load_painter(self.settings)

    def _ready(self) -> dict[str, Any]:
        import ray  # pyright: ignore[reportMissingImports]

        settings = self.settings
        given = ray.get_runtime_context().get_accelerator_ids()
        cards = show_own_cards(settings["kind"], settings["asked"], given, os.environ)
        if settings["kind"] == CPU:
            same_threads(settings["threads"], os.environ)
        take_probe(Path(settings["output"]), settings["probe"])
        self._painter = self.load()
        return {**self._painter.facts(), "pid": os.getpid(), "cards": cards, "probe": settings["probe"]}


def take_probe(folder: Path, name: str) -> None:
    """Remove a file that the driver wrote: both see that the other has the same folder.

    Args:
        folder: For images.
        name: Of the file.

    Raises:
        ValueError: When it is not there, or cannot be removed.
    """
    node = socket.gethostname()
    try:
        (folder / name).unlink()
    except FileNotFoundError:
        raise ValueError(not_shared(folder, node)) from None
    except OSError as error:
        raise ValueError(f"{folder} on {node} cannot be written ({error.strerror}).") from None


def not_shared(folder: object, node: str) -> str:
    """The message for a node that has another folder of the same name, or none."""
    return f"{folder} on {node} is not the folder of the command: choose an --output that all nodes share."


def same_threads(count: str | None, environment: MutableMapping[str, str]) -> None:
    """Compute with as many threads as the driver would, by whose number sums on a CPU differ.

    Ray sets the variable to the number of CPUs that a worker has asked for.

    Args:
        count: OMP_NUM_THREADS of the driver, if it has it.
        environment: Of this process, changed in place before torch is imported.
    """
    environment.pop("OMP_NUM_THREADS", None)
    if count is not None:
        environment["OMP_NUM_THREADS"] = count


def require_model(settings: Mapping[str, Any]) -> None:
    """Check, by the headers of its files, that this node has the model of the driver.

    Raises:
        CheckpointError, LoraError: When it has none.
        ValueError: When it has another.
    """
    from ...checkpoint.folder import Checkpoint, resolve_model
    from ...lora.file import LoraChoice
    from ..fingerprint import fingerprint

    checkpoint = Checkpoint.open(resolve_model(settings["model"]))
    loras = [LoraChoice(Path(path), strength) for path, strength in settings["loras"]]
    if fingerprint(checkpoint, loras=loras) != settings["facts"]["model"]:
        raise ValueError(
            f"{settings['model']} on {socket.gethostname()} (or a LoRA) is another model than that of the command: "
            "copy the same files to all nodes."
        )


def sentence(error: BaseException) -> str:
    """What an error says, on one line if it has no command."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}."
    return str(error) or type(error).__name__
