"""mmsr-ray: a vision-language policy learns by reinforcement when to search, what for, and how to reason over it."""

__version__ = "0.1.0"
