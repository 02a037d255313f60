"""Contact sheets: images side by side, with headings or captions."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    max_width: int = 320,
    gap: int = 8,
) -> UInt8[np.ndarray, "h w 3"]:
    """Arrange images in rows on a white sheet.

    Images are uint8, or float in [0,1] (clamped), of shape (H,W,3); wider ones are shrunk to `max_width`.
    Rows may differ in length. `labels` is one heading per column (strings) or one caption per image (rows of
    strings).

    Raises: ValueError if there are no images or the labels do not match them.
    """
    if not rows or not all(len(row) for row in rows):
        raise ValueError("a contact sheet needs at least one image in every row")
    headings, captions = _sheet_labels(rows, labels)
    thumbnails = [[_thumbnail(image, max_width) for image in row] for row in rows]
    columns = max(len(row) for row in rows)
    widths = [max(row[c].width for row in thumbnails if c < len(row)) for c in range(columns)]
    font = ImageFont.load_default(13)
    line = 18
    top = gap + (line if headings else 0)
    heights = [max(image.height for image in row) + (line if captions else 0) for row in thumbnails]
    size = (gap + sum(w + gap for w in widths), top + sum(h + gap for h in heights))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [gap + sum(w + gap for w in widths[:c]) for c in range(columns)]
    for left, width, heading in zip(lefts, widths, headings, strict=False):
        draw.text((left, gap // 2), _fit(heading, width, font), fill="black", font=font)
    for r, row in enumerate(thumbnails):
        for c, image in enumerate(row):
            sheet.paste(image, (lefts[c], top))
            if captions:
                caption = _fit(captions[r][c], widths[c], font)
                draw.text((lefts[c], top + image.height + 1), caption, fill="black", font=font)
        top += heights[r] + gap
    return np.asarray(sheet)


def _sheet_labels(
    rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str] | Sequence[Sequence[str]] | None
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """(headings of columns, captions of images), one of them empty."""
    if labels is None or not len(labels):
        return (), ()
    if all(isinstance(label, str) for label in labels):
        columns = max(len(row) for row in rows)
        if len(labels) != columns:
            raise ValueError(f"{len(labels)} headings for a contact sheet of {columns} columns")
        return labels, ()
    if [len(row) for row in labels] != [len(row) for row in rows]:
        raise ValueError("captions of a contact sheet must match its images row by row")
    return (), labels


def _thumbnail(image: np.ndarray, max_width: int) -> Image.Image:
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.rint(np.clip(np.asarray(image, np.float32), 0, 1) * 255).astype(np.uint8)
    thumbnail = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    if thumbnail.width <= max_width:
        return thumbnail
    height = max(1, round(thumbnail.height * max_width / thumbnail.width))
    return thumbnail.resize((max_width, height), Image.LANCZOS)


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
