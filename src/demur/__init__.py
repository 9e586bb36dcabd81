"""demur makes a language model refuse what it should, and only that, without touching its weights."""

__version__ = "0.1.0.dev0"
