"""Attention: what one batch step knows of its sequences."""

from sagellm_backend.attention.metadata import AttentionMetadata

__all__ = ["AttentionMetadata"]
