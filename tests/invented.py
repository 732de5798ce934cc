"""A study's folder of invented rows, so that what reads studies is tested without a model.

The answers are drawn, and everything else follows from them, so a test can count what a table says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seeing.correctness import anls, exact_match, token_f1, vqa_accuracy
from seeing.study.columns import SCHEMA

RIGHT = {"base": 0.5, "inst": 0.5, "vea": 0.65, "vea_in_pass:gain=2": 0.75}


def row(
    model: str, data: str, sample: str, method: str, answer: str, truth: Sequence[str], **more: Any
) -> dict:
    """A row as a study would write it of this answer."""
    em = exact_match(answer, truth)
    return {
        "model": model,
        "data": data,
        "sample": sample,
        "method": method,
        "question": f"what is in {sample} ?",
        "truth": list(truth),
        "answer": answer,
        "correct": em > 0,
        "em": em,
        "f1": token_f1(answer, truth),
        "anls": anls(answer, truth),
        "vqa": vqa_accuracy(answer, truth),
        "logprob": -1.0,
        "n_tokens": 2,
        "n_prompt": 20,
        "n_image": 16,
        "seconds": 0.5,
        "evidence_auroc": None,
        "auroc_layers": None,
        "meta": "{}",
        **more,
    }


def rows(
    models: Sequence[str] = ("plates-tiny",),
    data: Sequence[str] = ("crowded",),
    methods: Mapping[str, float] | Sequence[str] = RIGHT,
    n: int = 40,
    seed: int = 0,
) -> list[dict]:
    """Answers drawn so that each method is right as often as `methods` says."""
    rates = methods if isinstance(methods, Mapping) else dict.fromkeys(methods, 0.5)
    rng = np.random.default_rng(seed)
    made = []
    for model in models:
        for name in data:
            for number in range(n):
                luck = rng.random()
                for method, rate in rates.items():
                    right = 0.8 * luck + 0.2 * rng.random() < rate
                    answer = "seven red plates" if right else rng.choice(["red plates", "blue", "six", ""])
                    truth = ["seven red plates"]
                    made.append(row(model, name, f"{name}/{number}", method, str(answer), truth))
    return made


def failure(
    model: str, data: str, sample: str, method: str | None = None, reason: str = "no picture"
) -> dict:
    return {
        "model": model,
        "data": data,
        "sample": sample,
        "method": method,
        "stage": "sample" if method is None else "answer",
        "reason": reason,
        "traceback": "",
    }


def write_study(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]] = (),
    *,
    methods: Sequence[str] | None = None,
    parts: int = 2,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a folder with these rows, in some Parquet files."""
    for name in ("rows", "failures", "journal", "profiles"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    some = [rows[part::parts] for part in range(parts)]
    for number, own in enumerate(some):
        table = pa.Table.from_pylist([dict(one) for one in own], schema=SCHEMA)
        pq.write_table(table, folder / "rows" / f"m0-d0-{number:09d}.parquet")
    (folder / "failures" / "m0-d0-000000000.json").write_text(json.dumps(list(failures)))

    def names(column: str) -> list[str]:
        return list(dict.fromkeys(one[column] for one in [*rows, *failures] if one[column] is not None))

    document = {
        "seeing study": 1,
        "settings": {
            "models": [{"name": name} for name in names("model")],
            "data": [{"name": name, "spec": f"{name}:1", "n": 1} for name in names("data")],
            "methods": [{"text": name, "method": name} for name in methods or names("method")],
            "prompt": "qa",
            "max_new_tokens": None,
            "seed": 0,
            "profile": None,
            **(settings or {}),
        },
        "models": {name: {"layers": 6} for name in names("model")},
        "runs": [
            {
                "started": "2026-11-24T19:00:00+00:00",
                "versions": {"seeing": "0.1.0", "torch": "2.13.0"},
                "commit": "0123abc",
                "command": "seeing study --model plates-tiny",
            }
        ],
    }
    (folder / "study.json").write_text(json.dumps(document))
    return folder
