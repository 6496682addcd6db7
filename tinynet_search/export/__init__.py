"""Networks as files: ONNX, torch.export and safetensors, each compared with torch before it is kept, and int8 ONNX."""

from tinynet_search.export.export import ExportRequest, export_network
from tinynet_search.export.folder import load_exported

__all__ = ["ExportRequest", "export_network", "load_exported"]
