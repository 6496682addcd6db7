"""Files on any storage, whole or not at all, and JSON documents within bounds."""
