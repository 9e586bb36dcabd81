"""Ready-made attacks by family: a set whose rows have `family` and `goal` columns, such as JailbreakBench's jailbreaks."""

from demur.errors import PromptError
from demur.records import Prompt, PromptSet, evenly


def per_family(prompts: PromptSet, n: int) -> PromptSet:
    """An even sample of `n` rows of each family and label (all of them if there are fewer), in their order.

    Raises:
        PromptError: a row without a family.
    """
    families: dict[tuple[str, str], list[Prompt]] = {}
    for row in prompts.rows:
        if not row.family:
            raise PromptError(
                f"{prompts.name}: row {row.id} has no family; attacks need the columns `family` and `goal` beside "
                "`prompt` and `label`."
            )
        families.setdefault((row.family, row.label), []).append(row)
    return prompts.model_copy(update={"rows": tuple(row for rows in families.values() for row in evenly(rows, n))})
