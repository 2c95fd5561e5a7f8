"""Rules about splitting a model over GPUs, from `staging.layout.parallel`: advice, since servers differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from staging.layout.facts import CONFIG, Facts
from staging.layout.parallel import RULES
from staging.layout.rule import Evidence, Family

FAMILY: Final = Family("parallel")

_FIX: Final = "give --tensor-parallel-size another size than these, and as many GPUs"


def _limits(id: str) -> Callable[[Facts], Iterator[Evidence]]:  # noqa: A002
    def judge(facts: Facts) -> Iterator[Evidence]:
        for limit in facts.split.limits if facts.split is not None else ():
            if limit.rule == id:
                sizes = ", ".join(map(str, limit.excludes))
                told = f"{limit.message}; it does not split over {sizes} GPUs"
                if not limit.certain:
                    told = f"{limit.message}; over {sizes} GPUs that depends on the server"
                yield Evidence(CONFIG, told, limit.field, limit.value)

    return judge


for _id, (_reason, _source) in RULES.items():
    FAMILY.rule(_id, "advice", reason=_reason, fix=_FIX, source=_source)(_limits(_id))
