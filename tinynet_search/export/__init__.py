"""Networks as files: ONNX, torch.export and safetensors, each compared with torch before it is kept, and int8 ONNX."""

from tinynet_search.export.export import Request, export_network
from tinynet_search.export.folder import load_exported

__all__ = ["Request", "export_network", "load_exported"]
