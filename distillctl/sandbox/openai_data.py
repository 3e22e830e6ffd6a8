"""OpenAI's check of a training file, and tokens that are about as long as its own.

The format: https://developers.openai.com/api/docs/guides/supervised-fine-tuning#formatting-your-data
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import exp

from distillctl.types import JSON

LEAST_ROWS = 10
_ROLES = ("system", "user", "assistant", "tool", "developer", "function")
_TOKEN = re.compile(r" ?[^\W\d_]{1,6}|\d{1,3}|\s+|[^\w\s]{1,2}|.", re.DOTALL)


def tokens_of(text: str) -> list[str]:
    """`text` cut into pieces of up to six letters or three digits; joined they give it back."""
    return _TOKEN.findall(text)


def next_tokens(labels: Mapping[str, float], so_far: str) -> dict[str, float]:
    """Probability of each token that can follow `so_far` in one of the labels."""
    shares: dict[str, float] = {}
    for label, logprob in labels.items():
        rest = label[len(so_far):]
        if label.startswith(so_far) and rest:
            token = tokens_of(rest)[0]
            shares[token] = shares.get(token, 0.0) + exp(logprob)
    total = sum(shares.values())
    return {token: share / total for token, share in shares.items()} if total else {}


def token_count(row: Mapping[str, JSON]) -> int:
    """Tokens of one training row, its frame included."""
    prompt = sum(len(tokens_of(message["content"])) + 4 for message in row["messages"])
    return prompt + len(tokens_of(row["completion"])) + 3


def examine(data: bytes, param: str, least: int = LEAST_ROWS,
            ) -> tuple[list[dict[str, JSON]], dict[str, JSON] | None]:
    """The rows to train on, {"messages", "completion"}, and the error of the job where the file has one."""
    rows, wrong = [], []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        row = _row(line)
        if isinstance(row, str):
            wrong.append((number, row))
        else:
            rows.append(row)
    if wrong:
        shown = " ".join(f"Line {number}: {what}" for number, what in wrong[:5])
        return [], {"code": f"invalid_{param}", "param": param,
                    "message": f"The job failed due to an invalid {param.replace('_', ' ')}. Invalid file "
                               f"format. {shown}"}
    if len(rows) < least:
        return [], {"code": "invalid_n_examples", "param": param,
                    "message": f"{param.replace('_', ' ').capitalize()} has {len(rows)} example(s), but must "
                               f"have at least {least} examples"}
    return rows, None


def _row(line: bytes) -> dict[str, JSON] | str:
    """One line as a row to train on, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError:
        return "is not valid JSON."
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        return 'missing key "messages", or it is no list of messages.'
    if unknown := set(row) - {"messages", "tools", "parallel_tool_calls", "functions"}:
        return f'unrecognized key "{sorted(unknown)[0]}".'
    for message in row["messages"]:
        if problem := _message(message):
            return problem
    roles = [message["role"] for message in row["messages"]]
    if roles[-1] != "assistant":
        return "the last message must be from the assistant."
    if "system" in roles[1:]:
        return "a system message must come first."
    return {"messages": [{"role": message["role"], "content": message["content"]}
                         for message in row["messages"][:-1]],
            "completion": row["messages"][-1]["content"]}


def _message(message: JSON) -> str | None:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        return f"a message has an invalid role, expected one of {', '.join(_ROLES)}."
    if not isinstance(message.get("content"), str):
        return "a message has no content, or it is no string."
    if message["role"] == "assistant" and not message["content"]:
        return "an assistant message is empty."
    if unknown := set(message) - {"role", "content", "name", "weight"}:
        return f'a message has the unrecognized key "{sorted(unknown)[0]}".'
    if "weight" in message and (message["role"] != "assistant" or message["weight"] not in (0, 1)):
        return "weight is allowed on assistant messages only, and must be 0 or 1."
    return None
