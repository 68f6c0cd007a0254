"""People look at the candidates: accept, edit or reject; several per question, disputes to a second look, nothing lost."""
