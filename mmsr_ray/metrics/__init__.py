"""The numbers that Prometheus sees, through Ray's metrics: which there are (`catalogue`), what a step's record says of them (`steps`), how they are made (`exported`)."""
