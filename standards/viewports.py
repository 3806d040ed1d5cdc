"""The part and the size of a picture that are asked for. Source: PS3.18 8.3.5.1.3"""

from dataclasses import dataclass
from typing import Final

from PIL import Image

from standards.errors import PermanentError

MAX_VIEWPORT: Final = 4096


@dataclass(frozen=True)
class Viewport:
    """The size that a picture is fitted into, and the part of the image to show.

    ``region`` is (left, top, width, height) in pixels of the image; a negative width or height mirrors it. Without
    ``enlarge`` a small image stays small.
    """

    width: int
    height: int
    region: tuple[float, float, float, float] | None = None
    enlarge: bool = True


def fitted(picture: Image.Image, aspect: float, viewport: Viewport | None) -> Image.Image:
    """Square pixels, the region that is wanted, and the largest size of these proportions in the viewport.

    ``aspect`` is the height of a pixel by its width. A region that reaches beyond the image is cut off at its edge.

    Raises: PermanentError("invalid-parameter") for a region without any part of the image.
    """
    mirror: list[Image.Transpose] = []
    if viewport is not None and viewport.region is not None:
        left, top, width, height = viewport.region
        if width < 0:
            mirror.append(Image.Transpose.FLIP_LEFT_RIGHT)
        if height < 0:
            mirror.append(Image.Transpose.FLIP_TOP_BOTTOM)
        right, bottom = min(picture.width, left + abs(width)), min(picture.height, top + abs(height))
        box = (max(0, left), max(0, top), right, bottom)
        if not (box[0] < box[2] and box[1] < box[3]):
            raise PermanentError("invalid-parameter", "The region lies outside of the image.")
        whole = (
            round(box[0]),
            round(box[1]),
            max(round(box[0]) + 1, round(box[2])),
            max(round(box[1]) + 1, round(box[3])),
        )
        picture = picture.crop(whole)
    width, height = float(picture.width), float(picture.height)
    if abs(aspect - 1.0) > 0.001:
        width, height = (width, height * aspect) if aspect > 1 else (width / aspect, height)
    if viewport is not None:
        bound = [
            min(max(1, asked), max(MAX_VIEWPORT, own))
            for asked, own in ((viewport.width, picture.width), (viewport.height, picture.height))
        ]
        scale = min(bound[0] / width, bound[1] / height)
        scale = scale if viewport.enlarge else min(1.0, scale)
        width, height = width * scale, height * scale
    size = (max(1, round(width)), max(1, round(height)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    for operation in mirror:
        picture = picture.transpose(operation)
    return picture
