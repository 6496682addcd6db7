"""Folders on any storage with atomic writes, and JSON documents with size limits."""
