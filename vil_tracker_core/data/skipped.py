"""What a training could not read: every broken image once, whichever process met it."""

from __future__ import annotations

from pathlib import Path


class SkippedImages:
    """The images that were skipped, and why.

    Args:
        path: a text file to which each process adds a line for an image that it skips, so that
            loader workers, other processes and an earlier part of a resumed run count too.
            Without one only this process's are known.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._seen: dict[str, None] = {}

    def add(self, reason: str) -> None:
        """Notes a sentence that names the file; the same sentence counts once."""
        if reason in self._seen:
            return
        self._seen[reason] = None
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:  # one short line: never torn
                file.write(" ".join(reason.split("\n")) + "\n")

    def reasons(self) -> list[str]:
        """A sentence for each skipped image, in the order of their first sight."""
        if self.path is None or not self.path.is_file():
            return list(self._seen)
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return list(dict.fromkeys(line for line in lines if line))
