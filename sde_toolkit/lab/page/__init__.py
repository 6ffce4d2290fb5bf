"""The report page of a comparison: one HTML file that holds everything and works from disk.

content.py      what a page says
data.py         records as data for the page's scripts, with the paired differences
render.py       the template filled in
page.html.j2, page.css, page.js, chart.js
"""

from sde_toolkit.lab.page.content import Card, Page, Picture, Sample
from sde_toolkit.lab.page.data import facets_of, refers_to
from sde_toolkit.lab.page.render import render_page, versions, write_page

__all__ = [
    "Card",
    "Page",
    "Picture",
    "Sample",
    "facets_of",
    "refers_to",
    "render_page",
    "versions",
    "write_page",
]
