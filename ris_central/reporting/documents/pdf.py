"""Signed texts as PDF pages."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.enums import TA_LEFT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, KeepTogether, PageTemplate, Paragraph, Spacer, Table

from ris_central.reporting.documents.fonts import BOLD, REGULAR, register_fonts


@dataclass(frozen=True)
class Page:
    """What a document says: facts at the top, headed texts, signature lines, and a footer on every page."""

    title: str
    institution: str
    facts: Sequence[tuple[str, str]]
    texts: Sequence[tuple[str, str]]
    signatures: Sequence[str]
    footer: str
    author: str
    page_label: str
    """With two places, e.g. ``page {} of {}``."""


class _NumberedCanvas(Canvas):  # type: ignore[misc]
    """Knows the number of pages only at the end, so pages are kept and footed then."""

    page: Page

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._kept: list[dict[str, object]] = []

    def showPage(self) -> None:
        self._kept.append(dict(self.__dict__))
        self._startPage()

    def save(self) -> None:
        for number, state in enumerate(self._kept, 1):
            self.__dict__.update(state)
            self.setFont(REGULAR, 8)
            self.setFillColor(colors.HexColor("#666666"))
            self.drawString(20 * mm, 12 * mm, self.page.footer)
            self.drawRightString(A4[0] - 20 * mm, 12 * mm, self.page.page_label.format(number, len(self._kept)))
            super().showPage()
        super().save()


def render_pdf(page: Page) -> bytes:
    """The PDF, A4, fonts embedded; long texts flow over pages."""
    register_fonts()
    body = ParagraphStyle("body", fontName=REGULAR, fontSize=11, leading=15.5, alignment=TA_LEFT, spaceAfter=3)
    small = ParagraphStyle("small", parent=body, fontSize=9.5, leading=13)
    label = ParagraphStyle("label", parent=small, textColor=colors.HexColor("#555555"))
    title = ParagraphStyle("title", parent=body, fontName=BOLD, fontSize=16, leading=20, spaceBefore=4, spaceAfter=8)
    heading = ParagraphStyle("heading", parent=body, fontName=BOLD, fontSize=12, spaceBefore=9, spaceAfter=3)
    story: list[Flowable] = [Paragraph(escape(page.institution), small), Paragraph(escape(page.title), title)]
    rows = [[Paragraph(escape(name), label), Paragraph(escape(value), small)] for name, value in page.facts if value]
    story.append(Table(rows, colWidths=[42 * mm, None], hAlign="LEFT", style=_FACTS))
    story.append(Spacer(1, 4 * mm))
    for head, text in page.texts:
        story.append(Paragraph(escape(head), heading))
        story += [Paragraph(escape(line) or "&nbsp;", body) for line in text.strip().splitlines() or ["—"]]
    story.append(Spacer(1, 8 * mm))
    story.append(KeepTogether([Paragraph(escape(line), body) for line in page.signatures]))
    output = io.BytesIO()
    document = BaseDocTemplate(
        output,
        pagesize=A4,
        leftMargin=20 * mm,
        rightMargin=20 * mm,
        topMargin=18 * mm,
        bottomMargin=22 * mm,
        title=page.title,
        author=page.author,
        creator="Regis",
    )
    frame = Frame(document.leftMargin, document.bottomMargin, document.width, document.height, 0, 0, 0, 0)
    document.addPageTemplates([PageTemplate(frames=[frame])])
    canvas = type("PageCanvas", (_NumberedCanvas,), {"page": page})
    document.build(story, canvasmaker=canvas)
    return output.getvalue()


_FACTS = [
    ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ("LEFTPADDING", (0, 0), (-1, -1), 0),
    ("TOPPADDING", (0, 0), (-1, -1), 1.5),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
    ("LINEBELOW", (0, -1), (-1, -1), 0.6, colors.HexColor("#bbbbbb")),
]
