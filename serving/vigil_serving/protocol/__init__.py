"""Request format shared by the HTTP server and Triton's Python backend: strict JSON, items, output tensors and request errors.

Standard library and numpy only; neither web nor multipart packages are imported.
"""
