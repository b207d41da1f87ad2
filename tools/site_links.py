"""Links from docs/ to other files of the repository, for the site that mkdocs makes (mkdocs.yml has it as a hook).

On a forge they lead to the file. The site has pages of docs/ alone: there they lead to the forge that Cargo.toml names as the
repository, or, while it names none, say where the file is. A file or an anchor that is not there ends the build.
"""

import pathlib
import re
import tomllib

from mkdocs.exceptions import PluginError

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<path>(?:\.\./)+[^)#\s]*)(?P<anchor>#[^)\s]+)?\)")
HEADING = re.compile(r"^#+ +(?P<title>.+?) *$", re.MULTILINE)


def repository():
    package = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]
    return package.get("repository")


def anchors(page, slugify):
    """What a page's headings can be found by."""
    words = (re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in HEADING.findall(page))
    return {f"#{slugify(title, '-')}" for title in words}


def on_page_markdown(markdown, page, config, **_):
    docs = pathlib.Path(config.docs_dir)
    slugify = config.mdx_configs["toc"]["slugify"]
    forge = repository()

    def outside(link):
        file = (docs / page.file.src_uri).parent.joinpath(link["path"]).resolve()
        if file.is_relative_to(docs):
            return link[0]
        if not file.exists() or not file.is_relative_to(ROOT):
            raise PluginError(f"{page.file.src_uri} links to {link['path']}, which is not there")
        if link["anchor"] and link["anchor"] not in anchors(file.read_text(encoding="utf-8"), slugify):
            raise PluginError(f"{page.file.src_uri} links to {link['anchor']} of {link['path']}, which is not there")
        path = file.relative_to(ROOT).as_posix()
        if forge:
            return f"[{link['text']}]({forge.rstrip('/')}/blob/main/{path}{link['anchor'] or ''})"
        return link["text"] if link["text"].strip("`") == path else f"{link['text']} (`{path}` in the repository)"

    return LINK.sub(outside, markdown)
