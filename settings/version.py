"""The release. The image's label, `/info`, `/metrics` and the logs take it from here; a tag v1.0.0 publishes it."""

VERSION = "1.0.0"
NAMED = f"embeddinggemma-cog {VERSION}"
