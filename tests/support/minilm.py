"""A sentence encoder, all-MiniLM-L6-v2, in numpy: what a served model answers, without a framework.

    encoder = Encoder(directory)
    vector = encoder("a cat sits on the mat")

A BERT of six layers, whose weights and vocabulary are read from a directory in the Hugging Face layout;
a sentence's vector is the normalised mean over its words. Words are looked up whole, so it wants plain ones.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from safetensors.numpy import load_file

Floats = NDArray[numpy.float32]

_erf = numpy.vectorize(math.erf, otypes=[numpy.float32])


class Encoder:
    """A model as it lies in a directory."""

    def __init__(self, directory: Path) -> None:
        self._config: dict[str, Any] = json.loads((directory / "config.json").read_bytes())
        vocabulary = (directory / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self._numbers = {word: number for number, word in enumerate(vocabulary)}
        self._weights = load_file(directory / "model.safetensors")

    def __call__(self, sentence: str) -> Floats:
        """The vector of a sentence of known words in lower case. Raises KeyError."""
        words = ["[CLS]", *sentence.split(), "[SEP]"]
        hidden = (
            self._weights["embeddings.word_embeddings.weight"][[self._numbers[w] for w in words]]
            + self._weights["embeddings.position_embeddings.weight"][: len(words)]
            + self._weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._normalised("embeddings.LayerNorm", hidden)
        for layer in range(self._config["num_hidden_layers"]):
            hidden = self._layer(f"encoder.layer.{layer}", hidden)
        mean: Floats = hidden.mean(axis=0)
        unit: Floats = mean / numpy.linalg.norm(mean)
        return unit

    def _layer(self, name: str, hidden: Floats) -> Floats:
        attended = self._dense(f"{name}.attention.output.dense", self._attention(name, hidden))
        hidden = self._normalised(f"{name}.attention.output.LayerNorm", attended + hidden)
        inner = self._dense(f"{name}.intermediate.dense", hidden)
        inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
        outer = self._dense(f"{name}.output.dense", inner)
        return self._normalised(f"{name}.output.LayerNorm", outer + hidden)

    def _attention(self, name: str, hidden: Floats) -> Floats:
        heads = self._config["num_attention_heads"]
        query, key, value = (
            self._dense(f"{name}.attention.self.{part}", hidden)
            .reshape(len(hidden), heads, -1)
            .transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        weights = numpy.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        joined: Floats = (weights @ value).transpose(1, 0, 2).reshape(hidden.shape)
        return joined

    def _dense(self, name: str, hidden: Floats) -> Floats:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        result: Floats = hidden @ weight.T + bias
        return result

    def _normalised(self, name: str, hidden: Floats) -> Floats:
        mean = hidden.mean(axis=-1, keepdims=True)
        deviation = numpy.sqrt(hidden.var(axis=-1, keepdims=True) + self._config["layer_norm_eps"])
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        result: Floats = (hidden - mean) / deviation * weight + bias
        return result
