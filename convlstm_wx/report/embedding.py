"""Figures as data URIs, so that a page needs no other file; and templates."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure

# What is drawn in black follows the reader's light or dark page: black ink is written as the text colour of the image.
INK = "<style>svg{color:#1c2430;fill:currentColor}@media (prefers-color-scheme:dark){svg{color:#e6ebf1}}</style>"


def render(template: str, **values: Any) -> str:
    """The text of a page from a template of this folder; what comes from files is escaped."""
    environment = Environment(
        loader=PackageLoader("convlstm_wx.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def svg_uri(figure: Figure) -> str:
    """Lines and letters, sharp at any size, on no background."""
    file = io.StringIO()
    with rc_context({"svg.hashsalt": "convlstm_wx"}):  # the same figure gives the same bytes
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    head, _, rest = text.partition(">")
    return _uri("svg+xml", f"{head}>{INK}{rest}".encode())


def webp_uri(figure: Figure) -> str:
    """Every pixel as drawn, in half the bytes of a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="webp", pil_kwargs={"lossless": True, "quality": 20, "method": 1})
    return _uri("webp", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
