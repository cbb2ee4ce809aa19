"""Tiny encoders with random weights, as transformers makes and computes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

Floats = npt.NDArray[np.float32]

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


def make(folder: Path, kind: str, **changes: Any) -> Any:
    """A model of transformers, saved into `folder`."""
    configs = {
        "bert": transformers.BertConfig,
        "roberta": transformers.RobertaConfig,
        "xlm-roberta": transformers.XLMRobertaConfig,
    }
    classes = {
        "bert": transformers.BertModel,
        "roberta": transformers.RobertaModel,
        "xlm-roberta": transformers.XLMRobertaModel,
    }
    torch.manual_seed(0)
    model = classes[kind](configs[kind](**SIZES | changes)).eval()
    for parameter in model.parameters():
        # Weights of a new model are so small that mistakes would hardly show.
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def pool_by(folder: Path, way: str, normalize: bool) -> None:
    """The files of sentence-transformers."""
    modules = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    if normalize:
        modules.append("sentence_transformers.models.Normalize")
    (folder / "modules.json").write_text(json.dumps([{"type": one} for one in modules]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{way}": True}))


@torch.inference_mode()
def hidden(model: Any, tokens: list[int]) -> Floats:
    """[tokens, hidden_size], of one text alone."""
    states: Floats = model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    return states
