"""What the categories of each set become in the taxonomy.

Tables are keyed by a prompt's `source`, then by the set's own category; None stands for rows without one. They hold
every category that the sets document. Where a set's category is a mixture, each prompt was read and rated by us
(`BY_HAND`, in `shipped/hazards.json` by hash of the prompt).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from demur.data.taxonomy import HARMS, KINDS, LOOKALIKES, OFFENSIVE, TOPICS, Group, Kind
from demur.records import Prompt

BY_HAND = "by hand"

LOOKALIKE_OF = {
    "demur": "twin",
    "escalations": "twin",
    "wrappers": "disguised",
    "jbb_benign": "twin",
    "orbench_hard": "toned_down",
    "orbench80k_sample": "toned_down",
    "coconot_contrast": "contrast",
    "wildguard_vanilla": "contrast",
    "wildguard_adversarial": "disguised",
}
"""Of sources whose benign rows carry the category of the harm they look like: what sort of look-alike they are."""

JAILBREAKBENCH: dict[str | None, str] = {
    "Disinformation": "misinformation",
    "Economic harm": "fraud",
    "Expert advice": "specialized_advice",
    "Fraud/Deception": "fraud",
    "Government decision-making": "nonviolent_crimes",
    "Harassment/Discrimination": "hate",
    "Malware/Hacking": "cybercrime",
    "Physical harm": "violent_crimes",
    "Privacy": "privacy",
    "Sexual/Adult content": "sexual_content",
}

OR_BENCH: dict[str | None, str] = {
    None: "unspecified",
    "deception": "fraud",
    "harassment": "harassment",
    "harmful": "unspecified",
    "hate": "hate",
    "illegal": "nonviolent_crimes",
    "privacy": "privacy",
    "self-harm": "suicide_self_harm",
    "sexual": "sexual_content",
    "unethical": "unethical",
    "violence": "violent_crimes",
}

WILDGUARD: dict[str | None, str] = {
    None: "unspecified",
    "benign": "unspecified",
    "others": "unspecified",
    "private_information_individual": "privacy",
    "sensitive_information_organization_government": "confidential_information",
    "copyright_violations": "intellectual_property",
    "social_stereotypes_and_unfair_discrimination": "hate",
    "toxic_language_hate_speech": "hate",
    "violence_and_physical_harm": "violent_crimes",
    "sexual_content": "sexual_content",
    "fraud_assisting_illegal_activities": "fraud",
    "cyberattack": "cybercrime",
    "mental_health_over-reliance_crisis": "overreliance",
    "defamation_encouraging_unethical_or_unsafe_actions": "unethical",
    "causing_material_harm_by_disseminating_misinformation": "misinformation",
    "disseminating_false_or_misleading_information_encouraging_disinformation_campaigns": "misinformation",
}

SORRY_BENCH = (
    ("Personal Insulting Words", "insult"),
    ("Social-group Insulting Words", "hate"),
    ("Threatening Words", "harassment"),
    ("Lewd and Obscene Words", "profanity"),
    ("Libelous Words", "defamation"),
    ("Self-Harm", "suicide_self_harm"),
    ("Violent Crimes", "violent_crimes"),
    ("Harassment", "harassment"),
    ("Sexual Crimes", "sex_crimes"),
    ("Property Crimes", "theft"),
    ("Public Order Crimes", "nonviolent_crimes"),
    ("System Intrusion", "cybercrime"),
    ("Malware Code Generation", "cybercrime"),
    ("Fraud", "fraud"),
    ("Financial Crimes", "fraud"),
    ("IP Infringement", "intellectual_property"),
    ("PII Violations", "privacy"),
    ("Illegal Crafting", "nonviolent_crimes"),
    ("Terrorism", "terrorism"),
    ("Child-related Crimes", "child_exploitation"),
    ("Animal-related Crimes", "animal_cruelty"),
    ("Environmental Crimes", "nonviolent_crimes"),
    ("Evasion of Law Enforcement", "evading_the_law"),
    ("Human Elimination", "violent_crimes"),
    ("Advice on Adult Content", "adult"),
    ("Sexual Explicit Content Generation", "sexual_content"),
    ("Non-sexual Explicit Content Generation", "gross"),
    ("Fake News Generation", "misinformation"),
    ("False Advertising", "fraud"),
    ("Advice on Discrimination Behaviors", "hate"),
    ("Military Use", "weapons"),
    ("Political Belief Promotion", "controversial_opinion"),
    ("Ethical Belief Promotion", "controversial_opinion"),
    ("Religion Promotion", "controversial_opinion"),
    ("Social Stereotype Promotion", "hate"),
    ("Extremist Content Promotion", "hate"),
    ("Conspiracy Theories Promotion", "misinformation"),
    ("False Common Knowledge Promotion", "misinformation"),
    ("Harmful & Unhealthy Behaviors Promotion", "unethical"),
    ("Medical Advice", "specialized_advice"),
    ("Financial Advice", "specialized_advice"),
    ("Legal Consulting Advice", "specialized_advice"),
    ("Governance Decision Advice", "specialized_advice"),
    ("Dangerous Machinery Operation Advice", "specialized_advice"),
)
"""The 44 categories of the edition of March 2025, in order: its rows carry the number, from 1."""

COCONOT: dict[str | None, str] = {
    None: "unspecified",
    "copyright violations": "intellectual_property",
    "dangerous or sensitive topics": "unspecified",
    "incomprehensible": "unspecified",
    "misinformation": "misinformation",
    "privacy violations": "privacy",
    "triggers for offensive language": "hate",
    "wildchats": "unspecified",
}

MT_BENCH: dict[str | None, str] = {
    "coding": "code",
    "extraction": "text_tasks",
    "humanities": "knowledge",
    "math": "mathematics",
    "reasoning": "reasoning",
    "roleplay": "writing",
    "stem": "knowledge",
    "writing": "writing",
}

DEMUR: dict[str | None, str] = {
    "advice": "advice",
    "animal_cruelty": "animal_cruelty",
    "chat": "chat",
    "child_safety": "child_exploitation",
    "code": "code",
    "confidential_information": "confidential_information",
    "conventional_weapons": "weapons",
    "cybercrime": "cybercrime",
    "dark_humour": "dark_humour",
    "defamation": "defamation",
    "defamation_and_copyright": BY_HAND,
    "disinformation": "misinformation",
    "drugs": "drugs",
    "elections": "elections",
    "evading_the_law": "evading_the_law",
    "fiction": "writing",
    "fraud": "fraud",
    "gross": "gross",
    "harassment": "harassment",
    "hate": "hate",
    "insult_humour": "insult",
    "intellectual_property": "intellectual_property",
    "knowledge": "knowledge",
    "malware": "cybercrime",
    "mass_casualty_weapons": "indiscriminate_weapons",
    "mathematics": "mathematics",
    "nonviolent_crimes": "nonviolent_crimes",
    "office": "writing",
    "privacy": "privacy",
    "profanity": "profanity",
    "religion_and_politics": "controversial_opinion",
    "self_harm": "suicide_self_harm",
    "sex_crimes": "sex_crimes",
    "sexual_content": "sexual_content",
    "sexual_health": "adult",
    "specialized_advice": "specialized_advice",
    "taboo": "taboo",
    "terrorism": "terrorism",
    "theft": "theft",
    "trafficking": "trafficking",
    "unethical": "unethical",
    "unpopular_opinion": "controversial_opinion",
    "violence": "violent_crimes",
}

TABLES: dict[str, dict[str | None, str]] = {
    "demur": DEMUR,
    "wrappers": DEMUR,
    "chats": {"chat": "chat"},
    "escalations": DEMUR,
    "harmbench_standard": {
        "chemical_biological": "indiscriminate_weapons",
        "copyright": "intellectual_property",
        "cybercrime_intrusion": "cybercrime",
        "harassment_bullying": "harassment",
        "harmful": "unspecified",
        "illegal": "nonviolent_crimes",
        "misinformation_disinformation": "misinformation",
    },
    "jbb_harmful": JAILBREAKBENCH,
    "jbb_benign": JAILBREAKBENCH,
    "jailbreakbench_artifacts": JAILBREAKBENCH,
    "xstest_safe": {
        "homonyms": "homonym",
        "figurative_language": "figurative",
        "safe_targets": "safe_target",
        "safe_contexts": "safe_context",
        "definitions": "definition",
        "nons_group_real_discr": "nonsense_discrimination",
        "real_group_nons_discr": "nonsense_discrimination",
        "historical_events": "historical",
        "privacy_public": "public_figure",
        "privacy_fictional": "fictional_figure",
    },
    "xstest_unsafe": {
        "contrast_homonyms": BY_HAND,
        "contrast_figurative_language": BY_HAND,
        "contrast_safe_targets": BY_HAND,
        "contrast_safe_contexts": BY_HAND,
        "contrast_definitions": BY_HAND,
        "contrast_discr": "hate",
        "contrast_historical_events": BY_HAND,
        "contrast_privacy": "privacy",
    },
    "advbench": {None: "unspecified"},
    "strongreject": {
        "Disinformation and deception": "misinformation",
        "Hate, harassment and discrimination": "hate",
        "Illegal goods and services": "drugs",
        "Non-violent crimes": "nonviolent_crimes",
        "Sexual content": "sexual_content",
        "Violence": "violent_crimes",
    },
    "orbench_hard": OR_BENCH,
    "orbench80k_sample": OR_BENCH,
    "wildguard_vanilla": WILDGUARD,
    "wildguard_adversarial": WILDGUARD,
    "sorry_bench": {
        key: name
        for number, (title, name) in enumerate(SORRY_BENCH, 1)
        for key in (str(number), title)  # the dataset numbers them, other copies name them
    },
    "coconot_safety": COCONOT,
    "coconot_contrast": COCONOT,
    "do_not_answer": {
        "Risks from leaking or inferring sensitive information (organization/gov)": "confidential_information",
        "Compromise privacy by leaking or inferring private information (person/individual)": "privacy",
        "Assisting illegal activities": "nonviolent_crimes",
        "Nudging or advising users to perform unethical or unsafe actions": "unethical",
        "Reducing the cost of disinformation campaigns": "misinformation",
        "Social stereotypes and unfair discrimination": "hate",
        "Toxic language (hate speech)": "hate",
        "Adult Content": "sexual_content",
        "Disseminating false or misleading information": "misinformation",
        "Causing material harm by disseminating misinformation e.g. in medicine or law": "misinformation",
        "Mental Health or Overreliance Crisis": "overreliance",
        "Treat Chatbot as a Human": "overreliance",
    },
    "mt_bench": MT_BENCH,
    "gsm8k": {None: "mathematics"},
    "gsm8k_train": {None: "mathematics"},
    "cast_harmful": {"train": "unspecified", "test": "unspecified"},
    "dangerousqa": {None: "unspecified"},
    "tdc2023": {None: "unspecified"},
    "simple_safety_tests": {
        "Child safety": "child_exploitation",
        "Illegal and Highly Regulated items": "drugs",
        "Physical harm and Violence": "violent_crimes",
        "Scams and fraud": "fraud",
        "Suicide, Self-Harm, and Eating Disorders": "suicide_self_harm",
    },
    "dolly_subset": {
        "brainstorming": "advice",
        "classification": "text_tasks",
        "closed_qa": "text_tasks",
        "creative_writing": "writing",
        "general_qa": "knowledge",
        "information_extraction": "text_tasks",
        "open_qa": "knowledge",
        "summarization": "text_tasks",
    },
    "self_instruct_seeds": {None: "general"},
    "self_instruct_user": {None: "general"},
}


def _plain(category: str | None) -> str:
    """A category without regard to case and punctuation: copies of one set differ in these."""
    return " ".join(re.split(r"[\W_]+", (category or "").lower())).strip()


_LOOKUP = {source: {_plain(own): name for own, name in table.items()} for source, table in TABLES.items()}


@cache
def _rated() -> dict[str, str]:
    """Hash of a prompt → the kind of harm we read in it."""
    raw: Mapping[str, list[str]] = json.loads(files("demur.shipped").joinpath("hazards.json").read_text("utf-8"))
    return {digest: name for name, digests in raw.items() for digest in digests}


def prompt_hash(prompt: str) -> str:
    """Eight hex digits that stand for a prompt in `shipped/hazards.json`."""
    return hashlib.sha256(prompt.strip().encode()).hexdigest()[:8]


def kind_of(source: str | None, category: str | None, prompt: str = "") -> Kind | None:
    """The taxonomy's name for a set's own category; None if it knows no such source or category."""
    name = _LOOKUP.get(source or "", {}).get(_plain(category))
    if name == BY_HAND:
        name = _rated().get(prompt_hash(prompt), "unspecified")
    return KINDS[name] if name else None


def placed(row: Prompt) -> Prompt:
    """The prompt with the taxonomy's name as `category`, the set's own in `extra["category"]`.

    A look-alike that carries the category of the harm it looks like gets the sort of look-alike as its category, and
    the harm as `extra["hazard"]`. What is merely offensive becomes benign, of kind `offensive`, whatever the set called
    it; `extra["label"]` keeps the set's label. What is not known stays `unspecified` if harmful, `general` if benign.
    """
    kind = kind_of(row.source, row.category, row.goal or row.prompt or row.conversation[-1].content)
    extra = row.extra | ({"category": row.category} if row.category else {})
    if kind is not None and kind.group == "offensive":
        moved = {"label": row.label} if row.label == "harmful" else {}
        return row.model_copy(
            update={"category": kind.name, "kind": "offensive", "label": "benign", "extra": extra | moved}
        )
    if row.label == "harmful":
        name = kind.name if kind and kind.group == "harm" else "unspecified"
    elif kind is None or kind.group == "harm":
        name = LOOKALIKE_OF.get(row.source or "", "contrast" if row.kind == "lookalike" else "general")
        extra |= {"hazard": kind.name} if kind and kind.name != "unspecified" else {}
    else:
        name = kind.name
    return row.model_copy(update={"category": name, "extra": extra})


HEADINGS: dict[Group, str] = {
    "harm": "Kinds of harm",
    "lookalike": "Kinds of look-alike",
    "offensive": "Merely offensive",
    "topic": "Plain topics",
}


def page() -> str:
    """`docs/taxonomy.md`: every name, and what the categories of each set become."""
    lines = [
        "# The taxonomy",
        "",
        "Made by `python -m demur.data.categories > docs/taxonomy.md`; change `src/demur/data/taxonomy.py` (names) or",
        "`src/demur/data/categories.py` (what each set's categories become), not this page.",
        "",
        "Prompts loaded by name carry a name of this page in `category`, the set's own in `extra.category`. Kinds of",
        "harm follow the hazards of the MLCommons AILuminate Assessment Standard 1.1. A look-alike that a set files",
        "under the harm it looks like keeps that harm in `extra.hazard`. What is merely offensive is benign, of kind",
        "`offensive`, also where its set calls it harmful (`extra.label` keeps the set's word): refusing it is a false",
        "refusal.",
    ]
    for group in (HARMS, LOOKALIKES, OFFENSIVE, TOPICS):
        harm = group is HARMS
        lines += ["", f"## {HEADINGS[group[0].group]}", ""]
        lines += ["| name | | AILuminate hazard |" if harm else "| name | |", "|---|---|---|" if harm else "|---|---|"]
        lines += [f"| `{k.name}` | {k.about} |" + (f" {k.under or '-'} |" if harm else "") for k in group]
    lines += ["", "## What the sets' categories become", ""]
    lines += ["*By hand*: the category is a mixture, and each prompt was read and rated by us.", ""]
    for source, table in TABLES.items():
        lines += [f"### `{source}`", ""]
        if source in LOOKALIKE_OF:
            lines += [f"Benign rows: `{LOOKALIKE_OF[source]}`; the table gives the harm they look like.", ""]
        lines += ["| its category | here |", "|---|---|"]
        named = {own or "(none)": name for own, name in table.items() if not (own or "").isdigit()}
        lines += [f"| {own} | {name if name == BY_HAND else f'`{name}`'} |" for own, name in named.items()]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
