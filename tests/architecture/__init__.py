"""The house keeps its shape: layers, exports, start-up, files."""
