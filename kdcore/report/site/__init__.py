"""The site: light HTML pages made from records, sheets, figures and executed notebooks, in ``results/site``.

It needs no server and no script to be read, makes no request to another host, and the same records give the same bytes. What has not
changed is not written again. docs/site.md says what it holds.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from kdcore import paths
from kdcore.errors import KdcoreError
from kdcore.report import formats
from kdcore.report.evidence import Evidence
from kdcore.report.site import pages

HERE = Path(__file__).parent
MADE = ".made.json"  # {page: digest of what it was made from}


def write_site(results: Path, everything: list[Evidence]) -> Path:
    """Write the site into ``site`` of the results folder, from the evidence of all papers, ``figures`` and ``executed``; remove pages
    of earlier sites that no longer follow from anything. Returns the path of its first page."""
    site = Site(results / "site")
    for name in ("site.css", "site.js"):
        site.copy(name, HERE / name)
    pages.write(site, results, everything)
    site.finish()
    return site.folder / "index.html"


class Site:
    """A folder of pages, of which only those are written whose contents have changed."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, {}
        try:
            self.known = json.loads((folder / MADE).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or damaged: everything is written
            self.known = {}
        # the code whose change can change a page without its data
        code = [path for path in sorted(HERE.parent.rglob("*")) if path.suffix in (".py", ".j2")]
        libraries = [version(name) for name in ("Jinja2", "latex2mathml", "nbconvert", "Pygments")]
        self.code = hashlib.sha256(b"".join(path.read_bytes() for path in code) + " ".join(libraries).encode()).hexdigest()

    def page(self, name: str, template: str, make=dict, **context) -> None:
        """A page from a template and what it shows: plain data in ``context``, and what ``make()`` returns, which must follow from
        ``context`` and is called only if the page has to be written."""
        text = json.dumps([self.code, template, context], sort_keys=True, default=str)
        if not self._fresh(name, hashlib.sha256(text.encode()).hexdigest()):
            page = formats.environment().get_template(f"site/templates/{template}")
            self._write(name, page.render(root="../" * name.count("/"), **context, **make()).encode())

    def copy(self, name: str, source: Path) -> None:
        """A file as it is."""
        content = source.read_bytes()
        if not self._fresh(name, hashlib.sha256(content).hexdigest()):
            self._write(name, content)

    def finish(self) -> None:
        """Remove what is no page of this site, and note what was made."""
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder comes before the folder
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in (*self.made, MADE):
                path.unlink()
        if self.made != self.known:
            paths.write_text(self.folder / MADE, json.dumps(self.made, indent=0, sort_keys=True))

    def _write(self, name: str, content: bytes) -> None:
        """Without the care for each file that a record needs: as long as one is being written, nothing is known to be whole."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / MADE).unlink(missing_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise KdcoreError(
                f"cannot write {path} ({error.strerror or error}): {paths.cure(error)} and run the same command again"
            ) from error

    def _fresh(self, name: str, digest: str) -> bool:
        """Whether a page is there as it would be made now."""
        self.made[name] = digest
        return self.known.get(name) == digest and (self.folder / name).is_file()
