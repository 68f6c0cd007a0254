"""How weights get from the learner to the engines: versioned buckets in Ray's object store, or straight there by one of two faster ways."""
