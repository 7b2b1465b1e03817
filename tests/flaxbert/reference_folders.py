"""Small random models as transformers saves them, with a real tokenizer, for the tests of pipelines and exports."""

import torch
import transformers


def saved(name, folder, tokenizer, positions=24, **settings):
    """A folder of the class of this name; its weights are large enough for answers to differ clearly."""
    config = transformers.BertConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=positions,
        initializer_range=0.3,
        **settings,
    )
    torch.manual_seed(0)
    getattr(transformers, name)(config).eval().save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tokenizer, model_max_length=positions).save_pretrained(folder)
    return folder


def loaded(name, folder):
    """The same for transformers: model and tokenizer."""
    model = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)
