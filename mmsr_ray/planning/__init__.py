"""How many runners, ranks and tool actors a run needs: a discrete-event model of the pipeline, fed by measured costs. No Ray."""
