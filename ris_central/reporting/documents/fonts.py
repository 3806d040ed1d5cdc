"""The one place where fonts for PDFs come from: PT Sans (OFL-1.1), which has Cyrillic, out of its package."""

from functools import cache
from importlib.resources import as_file, files

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont

REGULAR, BOLD = "PTSans", "PTSans-Bold"


@cache
def register_fonts() -> None:
    """Make ``REGULAR`` and ``BOLD`` known to reportlab; they are embedded in every document."""
    for name, file in ((REGULAR, "PT_Sans-Web-Regular.ttf"), (BOLD, "PT_Sans-Web-Bold.ttf")):
        with as_file(files("fontpkg_pt_sans") / "files" / file) as path:
            pdfmetrics.registerFont(TTFont(name, str(path)))
    pdfmetrics.registerFontFamily(REGULAR, normal=REGULAR, bold=BOLD, italic=REGULAR, boldItalic=BOLD)
