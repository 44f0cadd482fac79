"""Pages may link to files of the repository outside docs/, as GitHub shows them.

Such files become a part of the site, at the path that they have in the repository, and links are
turned to it. So the same Markdown works in both places.
"""

from __future__ import annotations

import re
from os.path import normpath, relpath
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parent.parent.parent
DOCS = PurePosixPath("docs")
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")


def in_repository(page: File, target: str) -> PurePosixPath:
    """The path of what a page links to, from the repository's root."""
    path = PurePosixPath(page.src_uri)
    home = path if page.generated_by else DOCS / path
    return PurePosixPath(normpath(home.parent / target))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to."""
    for page in list(files.documentation_pages()):
        for target in LINK.findall(page.content_string):
            path = in_repository(page, target)
            outside = not path.is_relative_to(DOCS) and (REPOSITORY / path).is_file()
            if outside and str(path) not in files.src_uris:
                files.append(File.generated(config, str(path), abs_src_path=str(REPOSITORY / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that lead out of docs/, or back into it."""
    here = PurePosixPath(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        path = in_repository(page.file, link[1])
        place = path.relative_to(DOCS) if path.is_relative_to(DOCS) else path
        return relpath(place, here.parent) if str(place) in files.src_uris else link[1]

    return LINK.sub(turned, markdown)
