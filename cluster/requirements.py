"""Prints what pyproject.toml asks for, with the extras named: `python requirements.py gpu trackers`. For a layer without our code."""

import re
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
asked = list(project["dependencies"])
for extra in sys.argv[1:]:
    asked += project["optional-dependencies"][extra]
sys.stdout.write("".join(f"{line}\n" for line in asked if not re.match(rf"{project['name']}\b", line)))
