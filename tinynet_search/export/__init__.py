"""Exports networks to ONNX, torch.export and safetensors files, and to int8 ONNX.

Each file is compared with torch before it is kept. Called by ``tinynet export``.
"""

from tinynet_search.export.export import ExportRequest, export_network
from tinynet_search.export.folder import load_exported

__all__ = ["ExportRequest", "export_network", "load_exported"]
