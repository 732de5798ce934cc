"""The embedded model before training: a real LLaVA, small, and the processor that goes with it.

It is small in width and depth only. Tower, projector, text model, tokenizer, chat template and image
processor are the classes that published LLaVA checkpoints use, so what works on it has worked on a LLaVA.
"""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from seeing.data.painting import PATCH, SHAPES, SIDE
from seeing.data.plates import COLOUR_NAMES

PAD, BOS, EOS, UNKNOWN, IMAGE = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
DIGITS = tuple("0123456789")
WORDS = (*SPECIAL, "what", "digit", "is", "on", "the", "?", *COLOUR_NAMES, *SHAPES, *DIGITS)
TOKEN = {word: i for i, word in enumerate(WORDS)}
IMAGE_TOKENS = (SIDE // PATCH) ** 2
TEMPLATES = {"qa": "{question}", "vea": "{question}"}
"""The prompt templates of the model's card: the question alone, for it knows no words to instruct it with."""

CHAT_TEMPLATE = (
    "{{ bos_token }} "
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image> {% else %}{{ item['text'] }} {% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }} {% endif %}"
    "{% endfor %}"
)


def build_config(text_layers: int = 6) -> LlavaConfig:
    """The architecture: a CLIP tower of 4 layers x 96 on 8 x 8 patches, a Llama of `text_layers` layers x
    128.
    """
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=SIDE,
            patch_size=PATCH,
            hidden_size=96,
            intermediate_size=288,
            num_hidden_layers=4,
            num_attention_heads=4,
            projection_dim=96,
        ),
        text_config=LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=text_layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            pad_token_id=TOKEN[PAD],
            bos_token_id=TOKEN[BOS],
            eos_token_id=TOKEN[EOS],
            tie_word_embeddings=False,
        ),
        image_token_index=TOKEN[IMAGE],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=TOKEN[PAD],
        bos_token_id=TOKEN[BOS],
        eos_token_id=TOKEN[EOS],
    )
    config.seeing_templates = dict(TEMPLATES)
    return config


def build_model(text_layers: int = 6) -> LlavaForConditionalGeneration:
    """The model with fresh weights, float32, drawn from torch's global generator."""
    model = LlavaForConditionalGeneration(build_config(text_layers))
    # An answer is one digit and <eos>; four tokens leave room to see a model that fails to stop.
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=4,
        pad_token_id=TOKEN[PAD],
        bos_token_id=TOKEN[BOS],
        eos_token_id=TOKEN[EOS],
    )
    return model


def build_processor() -> LlavaProcessor:
    """A word-level tokenizer, a PIL image processor (no torchvision) and the chat template. A word that is
    not in WORDS becomes <unk>; capitals and a "?" without a space before it are fine.
    """
    words = Tokenizer(models.WordLevel(TOKEN, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
    )
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
