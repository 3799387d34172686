"""llmtool: prepare data, describe, train, fine-tune and evaluate models from one YAML file."""

__version__ = "0.1.0"
