"""What a browser would find in a page."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements with attributes, scripts with their text, the text between."""

    VOID = frozenset({"meta", "img", "input", "link", "br", "hr"})

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts, self.texts, self.open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = attrs, text + data
        elif not self.open or self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag):
        return [attrs for found, attrs in self.elements if found == tag]

    @property
    def text(self):
        return re.sub(r"[ \n]+", " ", " ".join(self.texts))
