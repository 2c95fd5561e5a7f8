"""What quantisation asks of the pieces of a weight: whole blocks, or whole groups.

Read from `quantization_config` of `config.json`, or from the file beside it that older tools write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from staging.formats.safetensors import Tensor
from staging.layout.architectures import told

Kind = Literal["attention", "dense", "experts", "shared"]
"""Layers that are quantised together or not at all."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Fields with block shapes and with group sizes that cuts must respect."""

    blocks: tuple[tuple[str, tuple[int, int]], ...] = ()
    groups: tuple[tuple[str, int], ...] = ()


def read_quantisation(
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    beside: Mapping[str, Any] | None,
    notes: list[str],
) -> Quantisation:
    """Find the quantisation of a model: its configuration, the language model's part of it, a file beside.

    A method that is not known here goes into `notes`.
    """
    for name, found in (
        ("quantization_config", config.get("quantization_config")),
        ("text_config.quantization_config", text.get("quantization_config")),
        ("quantize_config.json", beside),
    ):
        if isinstance(found, Mapping):
            return _read(name, found, notes)
    return Quantisation()


def _read(name: str, found: Mapping[str, Any], notes: list[str]) -> Quantisation:
    method = found.get("quant_method", "gptq" if name == "quantize_config.json" else None)
    if method == "fp8":
        block = _block(found.get("weight_block_size"))
        return Quantisation(blocks=((f"{name}.weight_block_size", block),) if block else ())
    if method in ("awq", "gptq"):
        group = found.get("group_size")
        return Quantisation(
            groups=((f"{name}.group_size", group),)
            if type(group) is int and _is_count(group)
            else ()
        )
    if method == "compressed-tensors":
        blocks, groups = [], []
        config_groups = found.get("config_groups")
        for key, entry in config_groups.items() if isinstance(config_groups, Mapping) else ():
            weights = entry.get("weights") if isinstance(entry, Mapping) else None
            if not isinstance(weights, Mapping):
                continue
            where = f"{name}.config_groups.{str(key)[:60]}.weights"
            if block := _block(weights.get("block_structure")):
                blocks.append((f"{where}.block_structure", block))
            elif weights.get("type") == "int" and _is_count(weights.get("group_size")):
                groups.append((f"{where}.group_size", weights["group_size"]))
        return Quantisation(tuple(blocks), tuple(groups))
    if method == "mxfp4":  # padded by the loader
        return Quantisation()
    notes.append(f"{name}: what quantisation {told(method)} calls for is not known here")
    return Quantisation()


def _block(value: object) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)):
        return value[0], value[1]
    return None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**40


_SCALES: Final = ("weight_scale_inv", "weight_scale", "qweight", "weight_packed", "scales")


def quantised_kinds(tensors: Mapping[str, Tensor]) -> frozenset[Kind]:
    """Layers that have scales beside their weights; all, when nothing is known of the weights."""
    if not tensors:
        return frozenset(("attention", "dense", "experts", "shared"))
    kinds: set[Kind] = set()
    for name in tensors:
        *parents, last = name.split(".")
        if last not in _SCALES and not last.endswith(("_scale_inv", "_scale", "_scales")):
            continue
        if any(part.startswith("shared_expert") for part in parents):
            kinds.add("shared")
        elif "experts" in parents:
            kinds.add("experts")
        elif parents and parents[-1] == "o_proj":
            kinds.add("attention")
        elif parents and parents[-1] == "down_proj":
            kinds.add("dense")
    return frozenset(kinds)
