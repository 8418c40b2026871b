"""Writes a model for vLLM that is small enough for any machine: `make_model.py FOLDER`.

Two layers of Llama whose weights vLLM makes up (`--load-format=dummy`), a byte-level tokenizer and a chat template. What
it says has no meaning; how it is tokenized, cached and streamed is vLLM's own doing.
"""

import json
import os
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
CORPUS = (
    "The quick brown fox jumps over the lazy dog. Hello world! "
    "user assistant system tokens cache prefix routing gateway"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)


def write(name, content):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)


tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=SPECIAL, initial_alphabet=alphabet)
tokenizer.train_from_iterator([CORPUS] * 50, trainer)
begin = ("<s>", tokenizer.token_to_id("<s>"))
tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A $B", special_tokens=[begin]
)
tokenizer.save(os.path.join(folder, "tokenizer.json"))

write(
    "tokenizer_config.json",
    {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    },
)
write(
    "config.json",
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    },
)
write("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
