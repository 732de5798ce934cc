"""What a row of a study says: one sample, asked of one model under one method."""

from __future__ import annotations

import pyarrow as pa

#: The columns of the Parquet files, in their order.
SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("data", pa.string()),
        ("sample", pa.string()),
        ("method", pa.string()),
        ("question", pa.string()),
        ("truth", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("em", pa.float64()),
        ("f1", pa.float64()),
        ("anls", pa.float64()),
        ("vqa", pa.float64()),
        ("logprob", pa.float64()),
        ("n_tokens", pa.int32()),
        ("n_prompt", pa.int32()),
        ("n_image", pa.int32()),
        ("seconds", pa.float64()),
        ("evidence_auroc", pa.float64()),
        ("auroc_layers", pa.list_(pa.float64())),
        ("meta", pa.string()),
    ]
)

#: What a row is known by.
KEY = ("model", "data", "sample", "method")

#: What a failure says.
FAILURE = ("model", "data", "sample", "method", "stage", "reason", "traceback")
