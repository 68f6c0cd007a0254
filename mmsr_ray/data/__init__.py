"""Questions in: the FVQA schema, its reader, and the endless resumable stream of training prompts."""
