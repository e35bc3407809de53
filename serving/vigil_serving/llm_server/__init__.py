"""Guards whose language model an LLM server runs: vLLM, llama.cpp, SGLang, Text Generation Inference."""
