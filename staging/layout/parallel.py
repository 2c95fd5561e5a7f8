"""Over how many GPUs a model can be split, and what each of them then holds, from config and headers alone.

Tensor parallelism cuts every layer into equal pieces: heads, the inner size of feed-forward layers, experts.
A model server that meets a size it cannot cut ends at start-up, after the download. The rules here are those
of vLLM 0.33.0, each read in the file that its `source` names; they are advice, since other versions and
other servers cut differently. A size that some versions or kernels take and others refuse is in `depends`.

Invariants: an architecture that is not in `staging.layout.architectures`, or a field that is missing, gives
`unknown` with the reason, never a guess; each size that is not possible comes with rule, field and value.
Not considered: expert, pipeline and data parallelism; vision and audio towers (vLLM keeps one whole on every
GPU where its heads do not divide); LoRA; what kernels of one GPU generation do not support.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from staging.formats.safetensors import SafetensorsHeader, Tensor
from staging.layout.architectures import Unknown, language_model, told
from staging.layout.quantisation import Kind, quantised_kinds, read_quantisation

SIZES: Final = (1, 2, 4, 8, 16)
"""Tensor-parallel sizes that are judged."""

_MOST: Final = 2**40  # beyond any size of a layer; the manifest has to hold the values
_MOST_DISTINCT: Final = 16

_VLLM: Final = "vLLM 0.33.0, "

RULES: Final[Mapping[str, tuple[str, str]]] = {
    "attention-heads": (
        "every GPU holds whole attention heads, equally many",
        _VLLM + "vllm/config/model.py, verify_with_parallel_config",
    ),
    "kv-heads": (
        "key and value heads are dealt out equally, or copied equally often",
        _VLLM + "vllm/model_executor/layers/linear.py, QKVParallelLinear",
    ),
    "experts": (
        "there are not more GPUs than experts",
        _VLLM + "vllm/model_executor/models/qwen3_moe.py, laguna.py, minimax_m2.py",
    ),
    "intermediate-size": (
        "feed-forward layers are cut into equal pieces",
        _VLLM + "vllm/distributed/utils.py, divide",
    ),
    "expert-size": (
        "experts are cut into equal pieces",
        _VLLM + "vllm/model_executor/layers/fused_moe/config.py, FusedMoEConfig",
    ),
    "shared-expert-size": (
        "shared experts are cut into equal pieces",
        _VLLM + "vllm/distributed/utils.py, divide",
    ),
    "fp8-blocks": (
        "every piece of a block-quantised weight has whole blocks; vllm#12256, sglang#3491, vllm#54178",
        _VLLM
        + "vllm/model_executor/layers/quantization/utils/fp8_utils.py, validate_fp8_block_shape",
    ),
    "quantisation-groups": (
        "every piece of a group-quantised weight has whole groups; vllm#21695, vllm#2699",
        _VLLM + "vllm/distributed/utils.py, verify_group_size_divides_partition",
    ),
}
"""What each rule says, and where that is read."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Why some sizes are not possible: `field` of the configuration has the `value`.

    `certain` is False where versions or kernels differ.
    """

    rule: str
    field: str
    value: Any
    excludes: tuple[int, ...]
    message: str
    certain: bool = True

    @property
    def source(self) -> str:
        """Where the rule is read."""
        return RULES[self.rule][1]


@dataclass(frozen=True, slots=True)
class Split:
    """What is known about splitting a model.

    `unknown` says why nothing is; all else is empty then. `weights` has upper estimates in bytes of what one
    GPU holds at each size that is possible or depends: weights as they are stored, without padding.
    """

    architecture: str | None
    unknown: str | None = None
    possible: tuple[int, ...] = ()
    depends: tuple[int, ...] = ()
    limits: tuple[Limit, ...] = ()
    weights: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def split(
    config: Mapping[str, Any],
    headers: Iterable[SafetensorsHeader] = (),
    *,
    quantisation: Mapping[str, Any] | None = None,
) -> Split:
    """Judge a model by its `config.json` and the headers of its weights.

    `quantisation` is the content of `quantize_config.json` or the like, where `config` does not have it.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        return Split(None, "config.json names no architecture")
    name = architectures[0]
    if not isinstance(name, str):
        return Split(None, "config.json names no architecture")
    tensors = {key: tensor for header in headers for key, tensor in header.tensors.items()}
    try:
        return _Judge(name, config, tensors, quantisation).split()
    except Unknown as reason:
        return Split(name, str(reason))


@dataclass(frozen=True, slots=True)
class _Cut:
    """A size that is cut: `field` of the configuration gives it, `size` is the whole of it.

    It is the input of one layer, unless `output_only`, and the output of others: merged ones or, if `apart`,
    layers of their own.
    """

    kind: Kind
    rule: str
    field: str
    value: Any
    size: int
    apart: bool = False
    output_only: bool = False


class _Judge:
    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        quantisation: Mapping[str, Any] | None,
    ) -> None:
        self._name = name
        self._config, self._prefix, known = language_model(name, config)
        self._architecture = known
        self._tensors = tensors
        self._limits: list[Limit] = []
        self._notes: list[str] = []
        self._quantisation = read_quantisation(config, self._config, quantisation, self._notes)
        self._quantised = quantised_kinds(tensors)

    def split(self) -> Split:
        latent = self._latent()
        heads_field, heads = self._heads()
        for count in sorted(set(heads)):
            self._exclude("attention-heads", heads_field, count, _does_not_divide(count))
        kv_heads = 1
        if not latent:
            kv_heads = self._kv_heads(max(heads))
            self._exclude(
                "kv-heads",
                "num_key_value_heads",
                kv_heads,
                lambda tp: kv_heads % tp != 0 if kv_heads >= tp else tp % kv_heads != 0,
            )
        else:
            self._notes.append(
                "latent attention: keys and values have one head, whole on every GPU"
            )
        experts_field = self._experts_field()
        if self._architecture.refuses_more_than_experts and experts_field:
            experts = self._integer(experts_field)
            self._exclude("experts", experts_field, experts, lambda tp: tp > experts > 0)
        cuts = list(self._cuts())
        for cut in cuts:
            self._exclude(cut.rule, cut.field, cut.value, _does_not_divide(cut.size))
        if self._quantisation.blocks or self._quantisation.groups:
            cuts += self._attention(heads_field, heads, latent=latent)
        for blocks_field, block in self._quantisation.blocks:
            self._blocks(blocks_field, block, cuts)
        for groups_field, group in self._quantisation.groups:
            self._groups(groups_field, group, cuts)
        certain = {size for limit in self._limits if limit.certain for size in limit.excludes}
        maybe = {size for limit in self._limits for size in limit.excludes} - certain
        possible = tuple(size for size in SIZES if size not in certain | maybe)
        depends = tuple(size for size in SIZES if size in maybe)
        return Split(
            self._name,
            possible=possible,
            depends=depends,
            limits=tuple(self._limits),
            weights=weights_per_gpu(
                self._tensors, sorted((*possible, *depends)), kv_heads, max(heads)
            )
            if self._tensors
            else {},
            notes=tuple(self._notes),
        )

    def _integer(self, name: str, *, least: int = 1) -> int:
        value = self._config.get(name)
        if type(value) is not int or not least <= value <= _MOST:
            raise Unknown(f"{self._prefix}{name} of config.json is {told(value)}")
        return value

    def _experts_field(self) -> str | None:
        """The field with the number of experts, by the name that this configuration has for it."""
        known = self._architecture
        also = known.experts_also
        if also is not None and known.experts not in self._config and also in self._config:
            return also
        return known.experts

    def _has_experts(self) -> bool:
        name = self._experts_field()
        return name is not None and self._integer(name, least=0) > 0

    def _heads(self) -> tuple[str, list[int]]:
        """Attention heads by layer where the configuration has that, else of all layers."""
        name = self._architecture.heads_by_layer
        heads = self._integer("num_attention_heads")
        by_layer = self._config.get(name) if name else None
        if name is None or by_layer is None:
            return "num_attention_heads", [heads]
        if (
            not isinstance(by_layer, list)
            or not by_layer
            or any(type(count) is not int or not 1 <= count <= _MOST for count in by_layer)
            or len(set(by_layer)) > _MOST_DISTINCT
        ):
            raise Unknown(f"{self._prefix}{name} of config.json is {told(by_layer)}")
        return name, [heads, *by_layer]

    def _kv_heads(self, heads: int) -> int:
        if (
            self._config.get("num_key_value_heads") is None
            and self._architecture.kv_heads_default_to_heads
        ):
            return heads
        return self._integer("num_key_value_heads")

    def _latent(self) -> bool:
        return self._architecture.latent and self._config.get("kv_lora_rank") is not None

    def _cuts(self) -> Iterator[_Cut]:
        """The feed-forward layers."""
        known = self._architecture
        if known.feed_forward is not None:
            size = self._integer(known.feed_forward)
            if not self._has_experts() or self._has_dense_layers():
                yield _Cut(
                    "dense", "intermediate-size", known.feed_forward, size, size, known.gate_apart
                )
        if not self._has_experts():
            return
        size = self._integer(known.expert_size)
        yield _Cut("experts", "expert-size", known.expert_size, size, size)
        if known.shared_experts is not None and self._config.get(known.shared_experts) is not None:
            count = self._integer(known.shared_experts, least=0)
            if count:
                what = f"{known.shared_experts} * {known.expert_size}"
                yield _Cut("shared", "shared-expert-size", what, count * size, count * size)
        if known.shared_expert_size is not None:
            shared = self._integer(known.shared_expert_size, least=0)
            if shared:
                name = known.shared_expert_size
                yield _Cut("shared", "shared-expert-size", name, shared, shared, known.gate_apart)

    def _has_dense_layers(self) -> bool:
        """Whether some layers have no experts; True where that cannot be told."""
        if self._config.get("first_k_dense_replace") == 0:
            return False
        only, step = self._config.get("mlp_only_layers"), self._config.get("decoder_sparse_step")
        return not (only == [] and step == 1)

    def _attention(self, name: str, heads: Sequence[int], *, latent: bool) -> Iterator[_Cut]:
        """The projections of attention, which matter where weights are quantised."""
        if latent:
            plain, rotary, value = (
                self._integer(width)
                for width in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
            )
            for width in (plain + rotary, plain + value):
                size = heads[0] * width
                yield _Cut("attention", "attention-heads", name, heads[0], size, True, True)
        elif self._config.get("head_dim") is None:
            value = self._integer("hidden_size") // heads[0]
        else:
            value = self._integer("head_dim")
        for count in sorted(set(heads)):
            yield _Cut("attention", "attention-heads", name, count, count * value)

    def _blocks(self, name: str, block: tuple[int, int], cuts: Iterable[_Cut]) -> None:
        rows, columns = block
        hidden = self._integer("hidden_size")
        for cut in cuts:
            if cut.kind not in self._quantised:
                continue
            refused: list[int] = []
            disputed: list[int] = []
            for tp in SIZES:
                piece, rest = divmod(cut.size, tp)
                if rest:
                    continue  # the rule of the size itself has said so
                across = tp > 1 and piece % columns != 0 and not cut.output_only
                along = (tp > 1 or cut.kind == "experts") and piece % rows != 0
                if cut.kind == "experts":
                    if across or along:
                        finer = math.gcd(rows, columns, piece, hidden) >= 32
                        (disputed if finer else refused).append(tp)
                elif across or (along and cut.apart):
                    refused.append(tp)
                elif along:
                    disputed.append(tp)
            for sizes, certain in ((refused, True), (disputed, False)):
                self._pieces("fp8-blocks", cut, name, list(block), sizes, certain=certain)

    def _groups(self, name: str, group: int, cuts: Iterable[_Cut]) -> None:
        for cut in cuts:
            if cut.kind in self._quantised and not cut.output_only:
                sizes = [tp for tp in SIZES[1:] if cut.size % tp == 0 and cut.size // tp % group]
                self._pieces(
                    "quantisation-groups", cut, name, group, sizes, certain=cut.kind != "experts"
                )

    def _pieces(
        self, rule: str, cut: _Cut, name: str, value: Any, sizes: Sequence[int], *, certain: bool
    ) -> None:
        if not sizes:
            return
        shown = ", ".join(f"{cut.size}/{tp} = {cut.size // tp}" for tp in sizes)
        unit = "groups" if rule == "quantisation-groups" else "blocks"
        where = {"dense": "feed-forward"}.get(cut.kind, cut.kind)
        doubt = "" if certain else "; some versions and kernels take it all the same"
        self._limits.append(
            Limit(
                rule,
                f"{name}, {self._prefix}{cut.field}",
                [value, cut.value],
                tuple(sizes),
                f"{where}: {shown} is not a whole number of {unit} of {value}{doubt}",
                certain,
            )
        )

    def _exclude(self, rule: str, name: str, value: int, excluded: Callable[[int], bool]) -> None:
        sizes = tuple(tp for tp in SIZES if excluded(tp))
        if sizes:
            name = self._prefix + name
            if rule == "experts":
                message = f"{name} is {value}: there may not be more GPUs than experts"
            elif rule == "kv-heads":
                message = f"{name} is {value}: it has to divide by the number of GPUs, or the other way round"
            else:
                message = f"{name} is {value}: it has to divide by the number of GPUs"
            self._limits.append(Limit(rule, name, value, sizes, message))


def _does_not_divide(size: int) -> Callable[[int], bool]:
    return lambda tp: size % tp != 0


_CUT_MODULES: Final = frozenset(
    (
        *("q_proj", "qkv_proj", "o_proj", "g_proj", "q_b_proj", "kv_b_proj"),
        *("gate_proj", "up_proj", "gate_up_proj", "down_proj", "w1", "w2", "w3"),
        *("embed_tokens", "lm_head"),
    )
)
_TOWERS: Final = ("visual", "vision", "audio", "multi_modal_projector", "mm_projector")


def weights_per_gpu(
    tensors: Mapping[str, Tensor], sizes: Iterable[int], kv_heads: int, heads: int
) -> dict[int, int]:
    """Bytes of weights that one GPU holds, at most, at each size: what is not known to be cut counts whole.

    Of key and value heads there are no more pieces than heads.
    """
    whole = cut = keys = 0
    for name, tensor in tensors.items():
        stored = tensor.end - tensor.start
        *parents, last = name.split(".")
        module = parents[-1] if parents else ""
        if len(tensor.shape) < 2 or last == "bias" or any(map(_is_tower, parents)):
            whole += stored
        elif module in ("k_proj", "v_proj"):
            keys += stored
        elif module == "qkv_proj":
            queries = stored * heads // (heads + 2 * kv_heads)
            cut += queries
            keys += stored - queries
        elif module in _CUT_MODULES or "experts" in parents:
            cut += stored
        else:
            whole += stored
    return {size: whole - (-cut // size) - (-keys // min(size, kv_heads)) for size in sizes}


def _is_tower(part: str) -> bool:
    return part.startswith(_TOWERS)
