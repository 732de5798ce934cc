"""A model that two processes share gives what it gives in one: heads keep their numbers on every rank.

Two ranks of torchrun, over gloo, load it with a tensor-parallel plan and ask the checks of `checks`; so does
this process with the same weights in one piece. What a head is, is told by Hugging Face's model alone.
"""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from parallel.checks import ALL, SAID, SOME, STUDY, batch, equal
from tiny.merged import gemma4
from transformers import AutoConfig
from transformers.distributed import DistributedConfig

import seeing
from seeing import edits as E
from seeing import study
from seeing.data.plates import plates
from seeing.loading import CannotLoad
from seeing.shards import CannotSplit, split_as_said
from seeing.zoo import open_zoo, zoo_folder

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(saved):
    """What each of two ranks found."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([*run, HERE / "ranks.py", saved], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-9000:]
    return [torch.load(saved / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


CHECKED = [("plates", check.__name__) for check in ALL]
CHECKED += [(name, check.__name__) for name in ("gated", "tower") for check in SOME]


@pytest.mark.parametrize(("model", "check"), CHECKED)
def test_ranks_find_what_one_process_finds(ranks, whole, model, check):
    # Sums of other terms in another order: rounding grows through some models more than through others.
    within = 1e-5 if model == "plates" else 5e-5
    for found in ranks:
        equal(found[model][check], whole[model][check], within)


@pytest.mark.parametrize(("model", "check"), CHECKED)
def test_ranks_agree_to_the_bit(ranks, model, check):
    first, second = (found[model][check] for found in ranks)
    equal(first, second, within=0)


def test_each_rank_holds_half_of_the_heads(ranks):
    config = open_zoo("plates-tiny")[0].config.text_config
    half = config.num_attention_heads * config.head_dim // 2
    for found in ranks:
        assert found["held"] == {"q_proj": (half, config.hidden_size), "o_proj": (config.hidden_size, half)}


def test_the_head_taken_out_is_the_one_that_was_named(ranks):
    """Hugging Face's model alone: without a head is with zeros in its columns of the output projection."""
    model, _ = open_zoo("plates-tiny")
    inputs = batch(seeing.load("plates-tiny", check=False)).inputs
    out = model.model.language_model.layers[-1].self_attn.o_proj.weight
    logits = []
    for head in range(4):
        with torch.no_grad():
            kept = out.clone()
            out.unflatten(1, (4, -1))[:, head] = 0
            logits.append(model(**inputs).logits)
            out.copy_(kept)
    real = inputs["attention_mask"].bool()
    for found in ranks:
        taken = found["plates"]["single_heads"]
        for head, expected in enumerate(logits):
            torch.testing.assert_close(taken[f"{head}"][real], expected[real], rtol=0, atol=2e-4)
            others = [one for number, one in enumerate(logits) if number != head]
            assert all((taken[f"{head}"] - one)[real].abs().max() > 1e-2 for one in others)


def test_edits_do_something_on_every_rank(ranks):
    for found in ranks:
        bare = found["plates"]["names"]["logits"]
        for name, logits in found["plates"]["edited"].items():
            assert (logits - bare).abs().max() > 1e-3, name


def test_a_plan_that_transformers_can_not_run_is_refused_with_what_to_do(ranks):
    for found in ranks:
        assert found["refused"].startswith("transformers can't run this Gemma4ForConditionalGeneration")
        assert "'replicate'" in found["refused"]


def test_the_documented_program_runs_on_every_rank(ranks):
    vlm = seeing.load("plates-tiny", check=False)
    prompt = vlm.prompt(plates("easy", 1)[0])
    edits = E.AblateHeads({2: [3]}) + E.ScaleAttention(keys=E.seen({0: [0, 3]}), gain=4.0, layers=[4])
    expected = {"answer": str(vlm.with_edits(edits).answer(prompt)), "shape": (1, 4, 1, prompt.length)}
    assert [found["documented"] for found in ranks] == [expected] * 2


def test_a_study_that_ranks_share_has_the_rows_of_one_process(ranks, tmp_path):
    alone = study.run(*STUDY, tmp_path / "results", **SAID)
    columns = ["answer", "logprob", "evidence_auroc"]
    expected = alone.rows.set_index(["sample", "method"])[columns].sort_index()
    assert len(expected) == 8
    for found in ranks:
        pd.testing.assert_frame_equal(found["study"].sort_index(), expected, rtol=0, atol=1e-5)


def test_a_plan_for_one_process_says_how_several_are_started(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(CannotLoad, match="torchrun --nproc-per-node 2"):
        seeing.load("plates-tiny", tp_plan="auto")


def test_processes_that_would_cut_a_head_in_two_are_refused_before_weights_are_read(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(CannotLoad, match="3 processes can't share 4 heads"):
        seeing.load("plates-tiny", tp_plan="auto")


def test_a_tower_whose_heads_do_not_divide_is_refused():
    config = gemma4(vision=dict(num_attention_heads=3, num_key_value_heads=3))[0].config
    with pytest.raises(CannotSplit, match="3 heads"):
        split_as_said(config, {"distributed_config": DistributedConfig(tp_size=2)})


def test_a_model_shared_along_other_lines_is_refused():
    config = AutoConfig.from_pretrained(zoo_folder("plates-tiny"))
    with pytest.raises(CannotSplit, match="dp_size"):
        split_as_said(config, {"distributed_config": DistributedConfig(fsdp_size=2)})
