"""The side that has the library: builds models, runs every case here, and packs the same case to run there.

Run as a program: ``departure.py FOLDER``. For each model it leaves ``model/`` as save_pretrained writes it,
and for each case what it gave here (``case.pt``) and the trace as nnsight would send it (``case.blob``).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from PIL import Image
from tiny.packed import qwen2_5_vl
from tiny.tiled import llava_next, mllama

import seeing
from seeing import edits as E
from seeing.zoo import open_zoo

MODELS = {
    "llava": lambda: open_zoo("plates-null"),
    "packed": qwen2_5_vl,
    "tiled": llava_next,
    "mllama": mllama,
}
QUESTION = "what digit is on the red square ?"
LONGER = "what digit is on the red square on the blue circle ?"
BOXES = [(10, 6, 60, 40)]


class Pack(Backend):
    """Keeps what would be sent; nothing runs."""

    def __call__(self, tracer):
        self.blob = RequestModel.serialize(tracer)


def paint(width=76, height=52, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


# -- the traces: each is run here, and packed ---------------------------------------------------------


def forward(model, prompt, **how):
    with torch.no_grad(), model.trace(prompt, **how):
        tower = model.vision[1].resid_post.save()
        given = model.projector.out.save()
        pattern = model.text[2].attn.pattern.save()
        logits = model.logits.save()
    return {} if how else dict(tower=tower, given=given, pattern=pattern, logits=logits)


def nnsights_own_names(model, prompt, **how):
    with torch.no_grad(), model.trace(prompt, **how) as tracer:
        logits = model.output.logits.save()
        whole = tracer.result.logits.save()
    return {} if how else dict(logits=logits, whole=whole)


def written_in_the_block(model, prompt, **how):
    with torch.no_grad(), model.trace(prompt, **how):
        model.text[1].attn.result[:, :, 0] = 0
        model.text[2].attn.pattern[:, 1, -1] *= 0.5
        logits = model.logits.save()
    return {} if how else dict(logits=logits)


def generation(model, prompt, **how):
    settings = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    with torch.no_grad(), model.generate(prompt, **settings, **how) as tracer:
        steps = [].save()
        for _ in tracer.iter[:5]:
            steps.append(model.logits[:, -1].clone())
        ids = tracer.result.save()
    return {} if how else dict(steps=torch.stack(list(steps)), ids=ids)


def in_a_session(model, prompt, **how):
    with torch.no_grad(), model.session(**how):
        with model.trace(prompt):
            hidden = model.text[1].resid_post
        with model.trace(prompt):
            model.text[1].resid_post = hidden * 0.5
            logits = model.logits.save()
    return {} if how else dict(logits=logits)


def two_invokes(model, first, second, **how):
    with torch.no_grad(), model.trace(**how) as tracer:
        with tracer.invoke(first):
            one = model.logits.save()
        with tracer.invoke(second):
            two = model.logits.save()
    return {} if how else dict(one=one, two=two)


def bare_inputs(model, inputs, **how):
    with torch.no_grad(), model.trace(**inputs, **how):
        logits = model.logits.save()
    return {} if how else dict(logits=logits)


def changed_there(model, prompt, **how):
    with torch.no_grad(), model.trace(prompt, **how):
        prompt.row(0)
        logits = model.logits.save()
    return {} if how else dict(logits=logits)


# -- the cases ----------------------------------------------------------------------------------------


def leave(folder, name, trace, *given):
    """What the case gives here, or the error that it raises, and the case as it is sent."""
    try:
        here = trace(*given)
    except ValueError as error:
        here = f"{type(error).__name__}: {error}"
    packed = Pack()
    try:
        trace(*given, backend=packed)
        (folder / f"{name}.blob").write_bytes(packed.blob)
    except ValueError as error:
        (folder / f"{name}.refused").write_text(f"{type(error).__name__}: {error}")
    torch.save(here, folder / f"{name}.pt")


def edits_of(vlm):
    vector = torch.linspace(-1, 1, vlm.cfg.d_model)
    return (
        E.ScaleAttention(keys="image", gain=3.0, layers=2)
        + E.Knockout(queries="question", keys="template", layers=[0])
        + E.AblateHeads({1: [0]})
        + E.Steer("text.1.resid_post", vector, 0.5)
    )


def every_edit_of_rows():
    some = E.Span("image") & ~E.Span("evidence") | "question"
    bias = E.Bias(keys=some, value=0.4, layers=0) + E.Temperature(value=1.7, layers=0, heads=[1])
    scores = E.Amplify(keys="image", share=0.3, layers=1) + E.MapScores(lambda rows: rows * 0.9, layers=1)
    pattern = E.ScalePattern(keys="image", factor=0.5, layers=2) + E.SetPattern(
        "uniform", keys=BOXES, layers=2
    )
    moved = E.Redistribute("template", "image", 0.5, where=E.Attending("image", least=0.01), layers=3)
    return bias + scores + pattern + moved + E.MapPattern(halved, layers=3, when="decode")


def halved(rows):
    return rows * 0.5


def every_edit_of_sites(vlm, prompt):
    ramp = torch.linspace(-1, 1, vlm.cfg.d_model)
    other = vlm.cache(vlm.prompt(paint(seed=2), QUESTION), ["text.2.resid_mid", "text.3.attn.z"])
    heads = E.ScaleHeads({0: [1]}, 0.5) + E.SetHeads({1: [0]}, 0.1) + E.AblateHeads({2: [1]}, to="mean")
    resampled = E.AblateHeads({3: [1]}, to="resample", source=other)
    turned = E.Rotate("text.0.resid_post", ramp, 0.3) + E.ProjectOut("text.1.mlp_out", ramp)
    fixed = E.SetResidual("text.embed", 0.1, [1]) + E.Patch("text.2.resid_mid", other)
    sunk = E.Bias(keys=E.maybe(E.sinks([0], 1.0)), value=-1.0, layers=2)
    return heads + resampled + turned + fixed + sunk + E.MixLayers([2], 0.3, norm=True)


def pack(folder, make):
    model, processor = make()
    vlm = seeing.load((model, processor), check=False)
    folder.mkdir()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    prompt = vlm.prompt(paint(), QUESTION, boxes=BOXES)
    batch = vlm.prompts([(paint(), QUESTION), (paint(52, 90, seed=1), LONGER)])
    edited = vlm.with_edits(edits_of(vlm))
    leave(folder, "edited", forward, edited, prompt)
    leave(folder, "generation", generation, edited, batch)
    return vlm, edited, prompt, batch


def pack_more(folder, vlm, edited, prompt, batch):
    """What does not depend on the family."""
    gaze = vlm.with_edits(E.ScaleAttention(keys=E.seen({1: [0, 1]}), gain=9.0, layers=(2, 3)))
    evidence = vlm.with_edits(E.ScaleAttention(keys="evidence", gain=4.0))
    dim = E.Highlight(np.tile(np.linspace(0, 1, 76), (52, 1)), 0.2)
    dimmed = edited.with_edits(dim)
    against = edits_of(vlm) + E.Contrast(dim + E.AblateHeads({2: [0]}), weight=0.7, plausibility=0.1)
    leave(folder, "bare", forward, vlm, prompt)
    leave(folder, "seen", generation, gaze, prompt)
    leave(folder, "rows", generation, vlm.with_edits(every_edit_of_rows()), prompt)
    leave(folder, "sites", generation, vlm.with_edits(every_edit_of_sites(vlm, prompt)), prompt)
    leave(folder, "evidence", forward, evidence, prompt)
    leave(folder, "boxes-missing", forward, evidence, vlm.prompt(paint(), QUESTION))
    leave(folder, "twice-edited", forward, edited.with_edits(E.AblateHeads({0: [1]})), prompt)
    leave(folder, "nnsights-own-names", nnsights_own_names, edited, prompt)
    leave(folder, "written-in-the-block", written_in_the_block, edited, prompt)
    leave(folder, "in-a-session", in_a_session, edited, prompt)
    leave(folder, "picture-in-a-session", in_a_session, dimmed, prompt)
    leave(folder, "picture", forward, dimmed, prompt)
    leave(folder, "contrast", generation, vlm.with_edits(against), prompt)
    leave(folder, "picture-invoke", two_invokes, dimmed, prompt, prompt)
    leave(folder, "invokes", two_invokes, edited, prompt, batch)
    leave(folder, "bare-inputs", bare_inputs, vlm, prompt.inputs)
    leave(folder, "edited-bare-inputs", bare_inputs, edited, prompt.inputs)
    leave(folder, "changed-there", changed_there, edited, prompt)


def simulate(folder, vlm, edited, prompt):
    """nnsight's own dry run of a remote trace, twice in this process, and what it leaves behind."""
    with torch.no_grad(), edited.trace(prompt, remote="local"):
        first = edited.logits.save()
    with torch.no_grad(), edited.generate(prompt, max_new_tokens=3, remote="local") as tracer:
        ids = tracer.result.save()
    torch.save(dict(first=first, ids=ids), folder / "local.pt")
    again = vlm.with_edits(edits_of(vlm))
    with torch.no_grad(), again.trace(prompt):
        logits = again.logits.save()
    with torch.no_grad(), again.generate(prompt, max_new_tokens=3) as tracer:
        ids = tracer.result.save()
    torch.save(dict(first=logits, ids=ids), folder / "behind-local.pt")


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name, make in MODELS.items():
        packed = pack(root / name, make)
        if name == "llava":
            pack_more(root / name, *packed)
            simulate(root / name, *packed[:3])
