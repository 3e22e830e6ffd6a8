"""Line numbers in OpenAI's words as places in our data.

The format of an upload: https://developers.openai.com/api/docs/guides/supervised-fine-tuning#formatting-your-data
"""

from __future__ import annotations

import re
from pathlib import Path

from distillctl.uploads import Sources

_LINE = re.compile(r"\b(lines? #?(\d+))\b", re.IGNORECASE)


def sources(workspace: Path) -> Sources:
    """Where each line of an upload came from."""
    return Sources(workspace, _LINE)
