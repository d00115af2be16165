"""The page of a package index: README.md without the parts that work only in a repository.

An index can show neither pictures nor links with addresses relative to the repository.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"^!\[[^\]]*\]\(docs/[^)]*\)\n+\*[^*]*\*\n+", re.MULTILINE)
REPOSITORY = re.compile(r"<!-- for the repository.*?<!-- for both again -->\n+", re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")


def page(readme: str) -> str:
    """Returns the text without relative links, pictures with captions, and lists of pages."""
    text = REPOSITORY.sub("", PICTURE.sub("", readme)).replace("'.[all]'", "'pyro-vae[all]'")
    return LINK.sub(r"\1", text)


class PackagePage(MetadataHookInterface):
    """Called by hatchling."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Puts the page into the metadata as the readme."""
        text = page(Path(self.root, "README.md").read_text(encoding="utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
