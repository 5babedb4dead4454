"""This checkout, and others that are made up."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def made_checkout(folder, name="kdcore"):
    """A folder that looks like a checkout of the project with this name."""
    (folder / "kdcore" / "papers").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    return folder
