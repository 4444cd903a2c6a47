"""Plain data to pictures and to one self-contained HTML page."""

from segue.report.demo_page import PromptClip, VariantPage, write_demo_report, write_summary
from segue.report.pictures import curve_png, spectrogram_png
from segue.report.run_page import write_run_report

__all__ = [
    "PromptClip",
    "VariantPage",
    "curve_png",
    "spectrogram_png",
    "write_demo_report",
    "write_run_report",
    "write_summary",
]
