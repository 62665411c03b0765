"""Reading the tables that `verify` prints."""

from __future__ import annotations


def rows(markdown: str) -> dict[str, list[str]]:
    """The cells of each row of the last table, by their first."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header = max(index for index, cells in enumerate(split) if cells[0] == "Comparison")
    assert split[header][1:] == ["MSE", "Largest difference", "Mean difference", "Identical", "PSNR", "SSIM"]
    return {cells[0]: cells[1:] for cells in split[header + 1 :]}
