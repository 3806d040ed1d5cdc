"""The one place where fonts for PDFs come from: Roboto (Apache-2.0), which has Cyrillic, out of its Python package."""

from functools import cache
from importlib.resources import as_file, files

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont

REGULAR, BOLD = "Roboto", "Roboto-Bold"


@cache
def register_fonts() -> None:
    """Make ``REGULAR`` and ``BOLD`` known to reportlab; they are embedded in every document."""
    for name, file in ((REGULAR, "Roboto-Regular.ttf"), (BOLD, "Roboto-Bold.ttf")):
        with as_file(files("font_roboto") / "files" / file) as path:
            pdfmetrics.registerFont(TTFont(name, str(path)))
    pdfmetrics.registerFontFamily(REGULAR, normal=REGULAR, bold=BOLD, italic=REGULAR, boldItalic=BOLD)
