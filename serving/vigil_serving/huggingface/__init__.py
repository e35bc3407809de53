"""Guards as folders in Hugging Face's layout, for transformers, vLLM, llama.cpp and Text Generation Inference."""
