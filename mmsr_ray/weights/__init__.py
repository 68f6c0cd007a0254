"""How weights get from the learner to the engines: buckets in Ray's object store, versioned, pulled by the engines."""
