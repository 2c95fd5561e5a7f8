"""Rules about training: checkpoints of a trainer, which no server reads, and what a trainer leaves behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from staging.layout.facts import Facts
from staging.layout.inventory import is_leftover
from staging.layout.rule import Evidence, Family

FAMILY: Final = Family("training")

_CHECKPOINT: Final = re.compile(
    r"(?:^|/)(?:[^/]+\.distcp|[^/]+\.nemo|mp_rank_\d+[^/]*|meta_model_\d+\.pt|[^/]*_optim_states\.pt"
    r"|latest_checkpointed_iteration\.txt|global_step\d+/.+|mp_rank_\d+/.+)"
)
_STATE: Final = re.compile(
    r"(?:^|/)(?:optimizer\.(?:pt|bin)|scheduler\.(?:pt|bin)|scaler\.pt|training_args\.bin"
    r"|rng_state[^/]*\.pth|random_states_\d+\.pkl|trainer_state\.json)"
)


def is_training_file(path: str) -> bool:
    """True for what belongs to training, by its name."""
    return _CHECKPOINT.search(path) is not None or _STATE.search(path) is not None


@FAMILY.rule(
    "training-checkpoint",
    "error",
    reason="servers do not read the checkpoints of a trainer: Megatron, NeMo, DeepSpeed, torchtune, FSDP",
    fix="convert it to Hugging Face's format first, and pack the checkpoint without these files",
    source="https://github.com/NVIDIA-NeMo/Megatron-Bridge/issues/698, torchtune#945",
    lasting=True,
)
def _training_checkpoint(facts: Facts) -> Iterator[Evidence]:
    found = [path for path in facts.fresh if _CHECKPOINT.search(path) and not is_leftover(path)]
    if found:
        more = f" and {len(found) - 1} more belong" if len(found) > 1 else " belongs"
        yield Evidence(
            found[0], f"{found[0][:200]!r}{more} to a training checkpoint, which no server reads"
        )


@FAMILY.rule(
    "training-state",
    "error",
    reason="the state of an optimizer is larger than the model, and a pickle that runs code",
    fix="pack the checkpoint without it, or allow it by name",
    source="https://github.com/vllm-project/vllm/pull/373: a server loaded training_args.bin as weights",
    lasting=True,
    milder="warning",
)
def _training_state(facts: Facts) -> Iterator[Evidence]:
    for path in facts.fresh:
        if _STATE.search(path) and not is_leftover(path) and not facts.allows(path):
            yield Evidence(
                path,
                f"{path[:200]!r} is the state of a training run, which no server needs",
                severity="warning" if path.endswith(".json") else None,
            )
