"""Processors for pictures only: what is saved opens again, here or on another machine, and reads the same."""

import copy
import functools
import importlib
import inspect
import json
import pickle
import pkgutil
import sys

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.utils import is_torchvision_available

import seeing
from seeing import processors
from seeing.loading import CannotLoad
from seeing.processors import ImagesOnly, images_only, open_processor
from seeing.zoo import open_zoo

BUILDERS = {"llava": functools.partial(open_zoo, "plates-null")}
for module in pkgutil.iter_modules(tiny.__path__):
    BUILDERS |= getattr(importlib.import_module(f"tiny.{module.name}"), "BUILDERS", {})
#: Transformers has their image processor for torchvision only.
TORCHVISION_ONLY = ("cohere2_vision",)

rng = np.random.default_rng(0)
PICTURES = [
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in ((52, 76), (60, 40))
]


def released(processor):
    """The processor as transformers' own class makes it: a builder may have cut its way short."""
    base = getattr(importlib.import_module(type(processor).__module__), type(processor).__name__)
    names = list(inspect.signature(base.__init__).parameters)[1:]
    parts = {name: getattr(processor, name, None) for name in names if name != "kwargs"}
    kept = {name: part for name, part in parts.items() if part is not None or "processor" in name}
    if "feature_extractor" in names:
        kept["feature_extractor"] = None
    return images_only(base)(**kept)


def encoded(processor):
    """Two rows, a picture each, padded on the left."""
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
    text = (
        processor.apply_chat_template(talk, add_generation_prompt=True)
        if processor.chat_template
        else f"{processor.image_token} what ?"
    )
    inputs = processor(
        text=[text, f"{text} and this ?"],
        images=[[picture] for picture in PICTURES],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    return {key: value for key, value in inputs.items() if key != "labels"}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


class Saved:
    """A folder with a processor and a config, and what they were before."""

    def __init__(self, model, processor, folder):
        self.model, self.processor, self.folder = model, processor, folder
        self.model.config.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.settings = self.read("processor_config.json")

    def read(self, name):
        return json.loads((self.folder / name).read_text())

    def write(self, name, settings):
        (self.folder / name).write_text(json.dumps(settings))

    def open(self):
        return open_processor(str(self.folder), AutoConfig.from_pretrained(self.folder))


@pytest.fixture(scope="module", params=[name for name in BUILDERS if name not in TORCHVISION_ONLY])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def build():
    """``build(name)``: the same (model, processor) every time."""

    @functools.cache
    def build(name):
        model, processor = BUILDERS[name]()
        return model.eval(), released(processor)

    return build


@pytest.fixture
def saved(build, tmp_path):
    """``saved(name)``: a fresh folder."""
    return lambda name: Saved(*build(name), tmp_path)


# -- what was saved opens again ----------------------------------------------------------------------


def test_a_saved_model_reads_and_answers_as_before(name, saved):
    there = saved(name)
    there.model.save_pretrained(there.folder)
    vlm = seeing.load(there.folder, check=False)
    before, after = encoded(there.processor), encoded(vlm.processor)
    assert same(before, after)
    with torch.no_grad():
        assert torch.equal(vlm._module(**after).logits, there.model(**before).logits)


def test_what_was_opened_can_be_saved_again(name, saved, tmp_path):
    first = saved(name)
    again = Saved(first.model, first.open(), tmp_path / "again")
    assert again.settings == first.settings
    assert same(encoded(again.open()), encoded(first.processor))


def test_it_is_a_processor_of_the_checkpoint_s_class(name, saved):
    there = saved(name)
    opened = there.open()
    assert type(opened).__name__ == there.settings["processor_class"]
    assert set(opened.get_attributes()) == {"tokenizer", "image_processor"}
    assert not {"video_processor", "feature_extractor"} & there.settings.keys()


def test_copies_and_pickles_read_the_same(name, build):
    _, processor = build(name)
    for other in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert type(other) is type(processor)
        assert same(encoded(other), encoded(processor))


# -- what another machine saved ----------------------------------------------------------------------

VIDEO = {"video_processor_type": "Qwen2VLVideoProcessor", "size": {"shortest_edge": 1, "longest_edge": 2}}


def with_torchvision(saved):
    """What transformers 5 saves where torchvision is: its own backend's name, and a video part."""
    pictures = dict(saved.settings["image_processor"])
    pictures["image_processor_type"] = pictures["image_processor_type"].removesuffix("Pil")
    parts = {"image_processor": pictures, "video_processor": VIDEO, "feature_extractor": {"feature_size": 1}}
    saved.write("processor_config.json", saved.settings | parts)


def of_before(saved):
    """What transformers 4 saved: a file a part."""
    rest = {key: value for key, value in saved.settings.items() if key != "image_processor"}
    pictures = dict(saved.settings["image_processor"])
    pictures["image_processor_type"] = pictures["image_processor_type"].removesuffix("Pil") + "Fast"
    saved.write("processor_config.json", rest)
    saved.write("preprocessor_config.json", pictures | {"processor_class": rest["processor_class"]})
    saved.write("video_preprocessor_config.json", VIDEO)


def without_names(saved):
    """No file says which class it was: the model's kind does."""
    of_before(saved)
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        settings = saved.read(file)
        settings.pop("processor_class", None)
        saved.write(file, settings)


@pytest.mark.parametrize("machine", [with_torchvision, of_before, without_names])
def test_a_checkpoint_from_another_machine(name, saved, machine):
    if name == "pixtral" and machine is without_names:
        pytest.skip("its config is one of LLaVA, so here transformers takes another processor too")
    there = saved(name)
    machine(there)
    assert same(encoded(there.open()), encoded(there.processor))


def test_a_hub_id_opens_from_the_cache(saved, tmp_path):
    """Some of the files that are looked for were never there."""
    snapshot = tmp_path / "models--someone--something" / "snapshots" / ("0" * 40)
    for folder in (snapshot, tmp_path / "models--someone--something" / "refs"):
        folder.mkdir(parents=True)
    (tmp_path / "models--someone--something" / "refs" / "main").write_text(snapshot.name)
    there = saved("qwen2_vl")
    there.model.save_pretrained(there.folder)
    for path in there.folder.iterdir():
        if path.is_file():
            path.rename(snapshot / path.name)
    vlm = seeing.load("someone/something", cache_dir=str(tmp_path), local_files_only=True, check=False)
    assert same(encoded(vlm.processor), encoded(there.processor))


# -- with torchvision --------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The calls of `AutoProcessor`, on a machine that has torchvision."""
    calls = []
    monkeypatch.setattr(processors, "is_torchvision_available", lambda: True)
    monkeypatch.setattr(
        AutoProcessor, "from_pretrained", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    return calls


@pytest.mark.parametrize("machine", [with_torchvision, of_before, without_names])
def test_with_torchvision_the_whole_processor_is_opened(saved, asked, machine):
    there = saved("qwen2_vl")
    machine(there)
    open_processor(str(there.folder), there.model.config, revision="main", trust_remote_code=False)
    assert asked == [((str(there.folder),), {"revision": "main", "trust_remote_code": False})]


def test_with_torchvision_a_processor_without_its_video_part_opens_too(saved, asked):
    there = saved("qwen2_vl")
    assert same(encoded(there.open()), encoded(there.processor))
    assert not asked


# -- classes -----------------------------------------------------------------------------------------


class Everything(ProcessorMixin):
    """Parts in an order of their own, handed on by place."""

    def __init__(self, feature_extractor, image_processor, video_processor=None, tokenizer=None, size=3):
        self.size = size
        super().__init__(feature_extractor, image_processor, video_processor, tokenizer, chat_template="text")


class Plain(ProcessorMixin):
    def __init__(self, image_processor=None, tokenizer=None):
        super().__init__(image_processor, tokenizer)


def test_parts_are_left_out_wherever_they_stand():
    _, processor = open_zoo("plates-null")
    made = images_only(Everything)(None, processor.image_processor, None, processor.tokenizer, size=4)
    assert isinstance(made, Everything)
    assert type(made).__name__ == "Everything"
    assert (made.image_processor, made.tokenizer) == (processor.image_processor, processor.tokenizer)
    assert (made.size, made.chat_template) == (4, "text")
    assert not hasattr(made, "video_processor")
    assert not hasattr(made, "feature_extractor")
    with pytest.raises(TypeError, match="NoneType"):
        Everything(None, processor.image_processor, None, processor.tokenizer)


def test_a_class_is_made_once_and_only_where_there_is_something_to_leave_out():
    assert images_only(Plain) is Plain
    made = images_only(Everything)
    assert issubclass(made, ImagesOnly)
    assert images_only(made) is images_only(Everything) is made


def test_code_of_the_checkpoint_s_own_is_left_to_transformers(saved, monkeypatch):
    there = saved("llava")
    there.write("processor_config.json", there.settings | {"auto_map": {"AutoProcessor": "own.Processor"}})
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *args, **kwargs: "its own")
    found = open_processor(str(there.folder), there.model.config, trust_remote_code=True)
    assert found == "its own"
    assert open_processor(str(there.folder), there.model.config, trust_remote_code=False) != "its own"


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_nothing_of_transformers_is_changed(saved):
    saved("pixtral").open()
    assert "transformers.models.pixtral.image_processing_pixtral" not in sys.modules
    with pytest.raises(ImportError, match=r"[Tt]orchvision"):
        importlib.import_module("transformers.models.pixtral.image_processing_pixtral")


# -- what is not there -------------------------------------------------------------------------------


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
@pytest.mark.parametrize("name", TORCHVISION_ONLY)
def test_a_family_that_needs_torchvision_says_so(saved, name):
    there = saved(name)
    with pytest.raises(CannotLoad, match="torchvision"):
        seeing.load(there.folder)


def test_a_checkpoint_without_a_processor_is_refused_by_what_opened(saved):
    there = saved("llava")
    without_names(there)
    there.write(
        "config.json",
        there.read("config.json") | {"model_type": "fast_vlm", "vision_feature_select_strategy": "full"},
    )
    with pytest.raises(CannotLoad, match=r"no processor for text and pictures: it opened as \w*Tokeniz"):
        seeing.load(there.folder, family="generic")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "preprocessor_config.json is not a valid JSON file"),
        ("[]", "preprocessor_config.json holds a list, a JSON object is expected"),
    ],
)
def test_a_broken_file_is_named(saved, text, says):
    there = saved("llava")
    (there.folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        there.open()
