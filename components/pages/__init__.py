"""Results to look at: self-contained HTML pages, and pictures for a log."""

from .gallery import Scored, critiques_page, gallery_page
from .report import Grid, report_page
from .sheets import Row, contact_sheet, histogram

__all__ = ["Grid", "Row", "Scored", "contact_sheet", "critiques_page", "gallery_page", "histogram", "report_page"]
