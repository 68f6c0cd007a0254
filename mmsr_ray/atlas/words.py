"""The vocabulary of Atlas: names, values and the wordings of questions and pages.

Every word here is one token of the tiny tokenizer (tested), so that a fact is one step of generation.
"""

from __future__ import annotations

CATEGORIES = ("place", "person", "product", "animal", "plant", "brand")  # after FVQA's taxonomy, spec §5.4

FIRST_NAMES = tuple(
    "Aldo Brina Corva Delmo Eskar Fenra Galdo Hesta Ivrin Jolka Kemra Lorvo Mirsa Nevlo Oskra Pelda Quora Rendo "
    "Sivra Tolme Ulvar Vesno Wilga Xandro Yelma Zorin Ambra Belto Cindra Dorvo".split()
)
LAST_NAMES = tuple(
    "Adrel Bostan Calune Drevin Elmont Farrow Gantel Hollin Istrad Jarvel Kolder Lanvik Morrel Norvane Ostrel "
    "Parvik Quillan Rostan Selwick Tarrant Umberlin Vantor Westrel Yarrow Zellick Ashven Birkel Corvane Dunmere "
    "Falkor".split()
)

# Facts the policy is taught about known entities, and live facts that only the web has.
TAUGHT = {
    "city": "Ombra Lethe Varna Sorrel Tivoli Kesh Pallas Runa Dover Milan Quito Basra".split(),
    "metal": "iron copper silver gold tin lead zinc nickel cobalt chrome bronze brass".split(),
}
LIVE = {
    "keeper": ("Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karin Leo Maria Nils Olga Pavel".split()),
    "song": ("Dawn River Ember Harbor Willow Thunder Meadow Lantern Comet Garden Winter Echo Anchor Beacon Canyon Desert".split()),
}
FACTS = {**TAUGHT, **LIVE}

NAME_QUESTIONS = ("What is the name of this {category}?", "What is this {category} called?")
FACT_QUESTIONS = ("What is the {fact} of this {category}?", "What {fact} has this {category}?")

INFOBOX = "{name}: the {fact} is {value}."
PROSE = (
    "As for the {fact} of {name}, it is {value}.",
    "Ask for the {fact} of {name} and people say {value}.",
)
INTRO = "{name} is a {category}."
JOURNAL_INTRO = "A visit to {name}, a {category}."

# What the teacher says while it reasons: whom it sees, what is asked, what it does about it; later, what the results say.
# The word that decides follows the word that it should depend on, so that a small policy can learn the dependence.
SEES = "I see {name}"
SEES_STRANGER = "I see a stranger"
LEARNS = "It is {name}"
KNOWN = "{impression}, {fact} known"
ASKED = "{impression}, {fact} asked"
KNOWN_NOW = "{impression}; {fact} known"
ASKED_NOW = "{impression}; {fact} asked"
READS = "It says {value}"
TEACHER_PHRASES = (SEES, SEES_STRANGER, LEARNS, READS, "a Adrel, city known, name asked; song known; name asked")
